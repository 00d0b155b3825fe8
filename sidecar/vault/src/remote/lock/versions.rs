//! A page of a list of versions, as S3 writes it.
//!
//! Keys and versions are names that need no escapes; where one has some, it is not ours and the page is refused:
//! better than deleting a version of something else.

use std::time::SystemTime;

/// A version of an object, or a mark that it is deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// The object.
    pub key: String,
    /// Its name.
    pub id: String,
    /// Since when it is there.
    pub since: SystemTime,
    /// Whether it says that the object is deleted.
    pub is_marker: bool,
}

/// A page of them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// In the store's order.
    pub versions: Vec<Version>,
    /// Key and version after which the next page begins.
    pub next: Option<(String, String)>,
}

/// Reads a page.
///
/// # Errors
/// What is wrong with it.
pub fn page(text: &str) -> Result<Page, &'static str> {
    let mut page = Page::default();
    // Versions and marks come mixed, or one kind after the other.
    for (is_marker, open, close) in
        [(false, "<Version>", "</Version>"), (true, "<DeleteMarker>", "</DeleteMarker>")]
    {
        for item in text.split(open).skip(1) {
            let item = item.split_once(close).ok_or("it breaks off")?.0;
            page.versions.push(Version {
                key: plain(item, "<Key>", "</Key>")?.ok_or("a version without a key")?,
                id: plain(item, "<VersionId>", "</VersionId>")?
                    .ok_or("a version without a name")?,
                since: plain(item, "<LastModified>", "</LastModified>")?
                    .and_then(|text| humantime::parse_rfc3339(&text).ok())
                    .ok_or("a version without a time")?,
                is_marker,
            });
        }
    }
    if text.contains("<IsTruncated>true</IsTruncated>") {
        let key = plain(text, "<NextKeyMarker>", "</NextKeyMarker>")?;
        let version = plain(text, "<NextVersionIdMarker>", "</NextVersionIdMarker>")?;
        page.next =
            Some((key.ok_or("it does not say where it goes on")?, version.unwrap_or_default()));
    } else if !text.contains("<IsTruncated>false</IsTruncated>") {
        return Err("it does not say whether it ends");
    }
    Ok(page)
}

/// The text between two marks, if they are there.
fn plain(text: &str, open: &str, close: &str) -> Result<Option<String>, &'static str> {
    let Some((_, rest)) = text.split_once(open) else { return Ok(None) };
    let (inside, _) = rest.split_once(close).ok_or("it breaks off")?;
    match inside.contains(['&', '<', '>']) {
        true => Err("a name that is not one of ours"),
        false => Ok(Some(inside.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn versions_and_marks() {
        let item = |kind: &str, key: &str| {
            format!(
                "<{kind}><ETag>&quot;x&quot;</ETag><Key>{key}</Key><VersionId>v</VersionId><LastModified>\
                 2026-11-21T17:48:37.305Z</LastModified></{kind}>"
            )
        };
        let list = |items: &str, end: &str| {
            format!("<ListVersionsResult>{end}{items}</ListVersionsResult>")
        };
        let mixed = item("DeleteMarker", "a") + &item("Version", "a") + &item("DeleteMarker", "b");
        let found = page(&list(&mixed, "<IsTruncated>false</IsTruncated>")).unwrap();
        let kinds: Vec<_> = found.versions.iter().map(|v| (&v.key[..], v.is_marker)).collect();
        assert_eq!(kinds, [("a", false), ("a", true), ("b", true)]);
        assert_eq!(found.next, None);
        let end = "<IsTruncated>true</IsTruncated><NextKeyMarker>b</NextKeyMarker>\
                   <NextVersionIdMarker>v</NextVersionIdMarker>";
        assert_eq!(page(&list("", end)).unwrap().next, Some(("b".into(), "v".into())));
        for wrong in ["", "<IsTruncated>true</IsTruncated>", "<Version><Key>a</Key>"] {
            assert!(page(wrong).is_err(), "{wrong}");
        }
        assert!(
            page(&list(&item("Version", "a&amp;b"), "<IsTruncated>false</IsTruncated>")).is_err()
        );
    }

    proptest! {
        #[test]
        fn any_text_is_a_page_or_an_error(
            parts in prop::collection::vec(
                prop_oneof![
                    "\\PC{0,5}",
                    prop::sample::select(vec![
                        "<Version>", "</Version>", "<DeleteMarker>", "</DeleteMarker>", "<Key>", "</Key>",
                        "<VersionId>", "</VersionId>", "<LastModified>", "</LastModified>", "2026-11-21T17:48:37Z",
                        "<IsTruncated>true</IsTruncated>", "<IsTruncated>false</IsTruncated>", "<NextKeyMarker>",
                    ]).prop_map(String::from),
                ],
                0..30,
            ),
        ) {
            let _ = page(&parts.concat());
        }
    }
}
