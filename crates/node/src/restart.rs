//! Starting the process again in its own place: same program, same arguments, same environment, same process id.
//!
//! What the process held is gone with it: files and sockets are closed at the exec, locks go with them, threads end. Who
//! supervises it (systemd, a shell, a test) sees one process that goes on. It is what a member does whose data is damaged
//! ([`crate::heal`]): there is one way into a rebuilding, and it begins at the start.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

/// Returns only with the reason why it could not be done.
pub fn restart() -> String {
    let mut words = std::env::args_os();
    let own_name = words.next().unwrap_or_default();
    // By its path where that still leads to the program: tools show a process by the name it was started under.
    let named = std::env::current_exe().ok().filter(|path| path.is_file());
    let program = named.unwrap_or_else(|| PathBuf::from("/proc/self/exe"));
    let error = Command::new(&program).arg0(own_name).args(words).exec();
    format!("{} cannot be started again: {error}", program.display())
}
