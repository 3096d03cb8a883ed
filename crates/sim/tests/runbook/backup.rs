//! The unit that makes backups, as it is shipped: its command line, its variables and what a host may set instead, run as
//! its user against a node.

use crate::said::Said;
use crate::world::World;

const UNIT: &str = include_str!("../../../../packaging/systemd/chainfire-backup.service");
/// Where the package puts the program, and where a machine has a copy that the unit's user can reach.
const PROGRAM: &str = "/usr/bin/chainfire-client";
const COPY: &str = "/var/lib/chainfire-client";
const BACKUPS: &str = "/var/backups/chainfire";

#[test]
fn the_unit_makes_an_archive_and_takes_what_a_host_sets() {
    let world = World::found(1);
    world.on(1, &format!("install -m 0755 \"$(command -v chainfire-client)\" {COPY}")).succeeds();
    // As tmpfiles.d has it.
    world.on(1, &format!("install -d -m 0700 -o chainfire -g chainfire {BACKUPS}")).succeeds();
    world.operator("chainfire-client --endpoint http://node1:2379 put key first").succeeds();
    run_the_unit(&world).succeeds();
    let first = archive(&world);
    let held = world.on(1, &format!("tar -tzf {first}")).succeeds();
    let folder = first.rsplit('/').next().and_then(|name| name.strip_suffix(".tar.gz")).expect("it is an archive");
    for file in ["restore.snapshot", "restore.sha256"] {
        assert!(held.out.lines().any(|line| line == format!("{folder}/{file}")), "{held}");
    }
    let owner = world.on(1, &format!("stat -c '%U %a' {first}")).succeeds();
    assert_eq!(owner.out, "chainfire 600\n");
    world.on(1, &format!("chainfire-client snapshot verify {first}")).succeeds();

    // Two words and their values in one variable.
    let figures = format!("{BACKUPS}/figures.prom");
    let set = format!("# This host's own\nKEEP=1\nBACKUP_OPTIONS=--max-rate 64 --textfile {figures}\n");
    world.on(1, "mkdir -p /etc/default").succeeds();
    world.write(1, setting("EnvironmentFile").trim_start_matches('-'), &set);
    world.operator("chainfire-client --endpoint http://node1:2379 put key second").succeeds();
    run_the_unit(&world).succeeds();
    let second = archive(&world);
    assert_ne!(second, first, "one is kept, the newest");
    world.on(1, &format!("chainfire-client snapshot verify {second}")).succeeds();
    let figure = "chainfire_backup_last_success_timestamp_seconds{kind=\"full\"} ";
    world.on(1, &format!("cat {figures}")).succeeds().shows(figure);

    // Nobody to ask: the unit fails, and what was made is left alone.
    world.stop(1);
    run_the_unit(&world).fails();
    assert_eq!(archive(&world), second);
}

/// What the service manager does: `Environment`, over it the lines of `EnvironmentFile` if there is one, and the command,
/// in which `${NAME}` is one word and `$NAME` as many as it holds.
fn run_the_unit(world: &World) -> Said {
    let file = setting("EnvironmentFile").strip_prefix('-').expect("it need not be there");
    let command = setting("ExecStart");
    assert!(command.starts_with(PROGRAM), "the unit runs something else: {command}");
    let command = command.replace(PROGRAM, COPY).replace("${KEEP}", "\"$KEEP\"");
    let (environment, user, group) = (setting("Environment"), setting("User"), setting("Group"));
    let script = format!(
        "export {environment}
         if [ -e {file} ]; then
             while IFS= read -r line; do case $line in [A-Z]*=*) export \"$line\" ;; esac; done < {file}
         fi
         umask {umask}
         exec setpriv --reuid {user} --regid {group} --clear-groups -- env HOME=/var/lib/chainfire {command}",
        umask = setting("UMask"),
    );
    world.on(1, &script)
}

/// The value of a setting that the unit has once.
fn setting(name: &str) -> &'static str {
    let mut values = UNIT.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    match (values.next(), values.next()) {
        (Some(value), None) => value,
        _ => panic!("the unit has {name} not once:\n{UNIT}"),
    }
}

/// The one full backup that there is.
fn archive(world: &World) -> String {
    let listed = world.on(1, &format!("ls {BACKUPS}/*.tar.gz")).succeeds();
    assert_eq!(listed.out.lines().count(), 1, "{listed}");
    listed.out.trim().to_owned()
}
