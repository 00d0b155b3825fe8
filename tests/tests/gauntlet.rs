//! The gauntlet: a fault is injected into a healthy protected disk while its sidecar runs, one interval goes by, and then
//! status, doctor, exit code and metrics must not be healthy, and each must name the cause. Then the fault is taken
//! away, and the disk is healthy again, by itself or with the one command that was named.
//!
//! Each fault is a line of a table, below `gauntlet/`. Some run at a time. `BACKSTAY_GAUNTLET` runs only those whose names
//! contain its value.
//!
//! Needs root, /dev/fuse, loop devices.

#[path = "gauntlet/backing.rs"]
mod backing;
#[path = "gauntlet/behind.rs"]
mod behind;
#[path = "gauntlet/host.rs"]
mod host;
#[path = "gauntlet/lab.rs"]
mod lab;
#[path = "gauntlet/names.rs"]
mod names;
#[path = "gauntlet/objects.rs"]
mod objects;
#[path = "gauntlet/replica.rs"]
mod replica;
#[path = "gauntlet/state.rs"]
mod state;
#[path = "gauntlet/stores.rs"]
mod stores;
#[path = "gauntlet/vault.rs"]
mod vault;

use lab::run;

#[test]
fn faults_of_the_host() {
    run(host::FAULTS, lab::on_a_directory);
}

#[test]
fn faults_of_the_vault() {
    run(vault::FAULTS, lab::on_a_directory);
}

#[test]
fn faults_of_objects() {
    run(objects::FAULTS, lab::on_a_directory);
}

#[test]
fn faults_on_the_way_to_a_gateway() {
    run(behind::FAULTS, behind::lab);
}

#[test]
fn odd_answers_of_a_store() {
    run(stores::FAULTS, stores::lab);
}

#[test]
fn faults_of_backings() {
    run(backing::FAULTS, lab::on_a_directory);
}

#[test]
fn faults_of_names() {
    run(names::FAULTS, lab::on_a_directory);
}

#[test]
fn faults_of_folders() {
    run(state::FAULTS, state::lab);
}

#[test]
fn faults_of_replicas() {
    run(replica::FAULTS, replica::lab);
}

/// The table is not made shorter by mistake.
#[test]
fn there_are_sixty_faults_at_least() {
    let tables = [
        host::FAULTS,
        vault::FAULTS,
        objects::FAULTS,
        behind::FAULTS,
        stores::FAULTS,
        backing::FAULTS,
        names::FAULTS,
        state::FAULTS,
        replica::FAULTS,
    ];
    let mut names: Vec<&str> = tables.iter().flat_map(|t| t.iter().map(|f| f.name)).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count, "a name is there twice");
    assert!(count >= 60, "{count}");
}
