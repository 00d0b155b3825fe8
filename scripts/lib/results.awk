# Adds up what `cargo test` printed, for scripts/test: a first line "PASSED FAILED SKIPPED", then a line for each
# failed test. A test program that ended without a result (killed, aborted) is one failure.

function no_result() {
    if (running != "") { failed++; names[++n] = running ": ended without a result" }
    running = ""
}
/^ +Running / {
    no_result()
    running = $0
    sub(/^ +Running (unittests )?/, "", running)
    path = running
    sub(/ \(.*/, "", running)
    # The sources of unit tests have the same name in each crate: src/lib.rs. The program has the crate's name.
    if (running ~ /^src\//) {
        sub(/.*\//, "", path)
        sub(/-[0-9a-f]+\)$/, "", path)
        running = path " " running
    }
}
/^ +Doc-tests / { no_result(); running = "doc-tests " $2 }
# libtest lists failures twice: first with what they printed, then by name alone.
/^failures:$/ { listed = 0 }
/^    [^ ]+/ { list[++listed] = substr($0, 5) }
/^test result:/ {
    passed += $4; failed += $6; skipped += $8
    if ($6 > 0)
        for (i = 1; i <= listed; i++) names[++n] = running ": " list[i]
    running = ""
    listed = 0
}
END {
    no_result()
    print passed + 0, failed + 0, skipped + 0
    for (i = 1; i <= n; i++) print names[i]
}
