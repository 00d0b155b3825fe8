#![no_main]

#[path = "../replica.rs"]
mod entry;

libfuzzer_sys::fuzz_target!(|data: &[u8]| entry::replica_record(data));
