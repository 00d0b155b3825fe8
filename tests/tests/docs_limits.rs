//! docs/reference/limits.md says the numbers that the source has.

use std::fs;
use std::path::Path;

use backstay_format::superblock::Geometry;
use backstay_types::DiskName;
use backstay_vault::format::{document, group, ledger, manifest, segment};

#[test]
fn the_page_says_what_the_source_says() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/limits.md");
    let page = fs::read_to_string(page).unwrap();
    let rows = [
        ("largest disk", format!("{} PiB", Geometry::SIZE_MAX.0 >> 50)),
        ("length of a disk's name", format!("{} characters", DiskName::LEN_MAX)),
        ("region, the unit", format!("{} MiB", 512_u64 << Geometry::REGION_SHIFT_DEFAULT >> 20)),
        ("recovery points of a disk", ledger::POINTS_MAX.to_string()),
        ("segments of a recovery point", manifest::SEGMENTS_MAX.to_string()),
        ("largest segment", format!("{} GiB", segment::SEGMENT_BYTES_MAX >> 30)),
        ("block that is compressed", format!("{} KiB", segment::FRAME_BYTES_MAX >> 10)),
        ("documents", format!("{} KiB", document::DOCUMENT_BYTES_MAX >> 10)),
        ("disks in a consistency group", group::MEMBERS_MAX.to_string()),
    ];
    for (what, number) in rows {
        let line = page.lines().find(|line| line.starts_with(&format!("| {what}")));
        let line = line.unwrap_or_else(|| panic!("{what} is not in docs/reference/limits.md"));
        let limit = line.split('|').nth(2).unwrap().trim();
        assert!(limit.starts_with(&number), "{what}: the source says {number}, the page {limit}");
    }
}
