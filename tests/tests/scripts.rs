//! What scripts/test makes of the output of cargo: no failed test without its name, no program that vanished.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

const OUTPUT: &str = "
     Running unittests src/lib.rs (/t/checked/deps/backstay_front-0123456789abcdef)

running 3 tests
test a::one ... ok
test a::two ... FAILED
test b ... ignored

failures:

---- a::two stdout ----
thread 'a::two' panicked at src/lib.rs:3:
    indented, and no name

failures:
    a::two

test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s

     Running tests/e2e_kill.rs (/t/checked/deps/e2e_kill-0123456789abcdef)

running 1 test
error: test failed, to rerun pass `-p backstay-tests --test e2e_kill`

Caused by:
  process didn't exit successfully: `/t/e2e_kill` (signal: 9, SIGKILL: kill)
   Doc-tests backstay_vault

running 1 test
test sidecar/vault/src/lib.rs - (line 24) - compile ... ok

test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s

error: 2 targets failed:
    `-p backstay-front --lib`
    `-p backstay-tests --test e2e_kill`
";

#[test]
fn every_failed_test_is_named_and_a_killed_program_is_one() {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/lib/results.awk");
    let mut awk = Command::new("awk")
        .arg("-f")
        .arg(program)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    awk.stdin.take().unwrap().write_all(OUTPUT.as_bytes()).unwrap();
    let said = String::from_utf8(awk.wait_with_output().unwrap().stdout).unwrap();
    let expected =
        "2 2 1\nbackstay_front src/lib.rs: a::two\ntests/e2e_kill.rs: ended without a result\n";
    assert_eq!(said, expected);
}
