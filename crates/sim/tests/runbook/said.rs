//! What a command printed, and the questions a test asks about it. Every failure shows the command and all of its output.

use std::process::ExitStatus;

pub struct Said {
    command: String,
    code: Option<i32>,
    /// Standard output and, after it, standard error.
    pub text: String,
    /// Standard output alone.
    pub out: String,
}

impl Said {
    pub fn new(machine: &str, command: &str, status: ExitStatus, stdout: &[u8], stderr: &[u8]) -> Said {
        let out = String::from_utf8_lossy(stdout).into_owned();
        let text = out.clone() + &String::from_utf8_lossy(stderr);
        Said { command: format!("{machine}$ {command}"), code: status.code(), text, out }
    }

    pub fn is_success(&self) -> bool {
        self.code == Some(0)
    }

    #[track_caller]
    pub fn succeeds(self) -> Said {
        assert!(self.is_success(), "exit code 0 was expected of\n{self}");
        self
    }

    #[track_caller]
    pub fn fails(self) -> Said {
        assert!(!self.is_success(), "a failure was expected of\n{self}");
        self
    }

    #[track_caller]
    pub fn exits(self, code: i32) -> Said {
        assert_eq!(self.code, Some(code), "exit code {code} was expected of\n{self}");
        self
    }

    #[track_caller]
    pub fn shows(self, text: &str) -> Said {
        assert!(self.text.contains(text), "`{text}` was expected of\n{self}");
        self
    }

    #[track_caller]
    pub fn hides(self, text: &str) -> Said {
        assert!(!self.text.contains(text), "`{text}` was not expected of\n{self}");
        self
    }

    /// The rest of the first line that begins with `name: `.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.text.lines().find_map(|line| line.trim_start().strip_prefix(name)?.strip_prefix(": "))
    }

    #[track_caller]
    pub fn number(&self, name: &str) -> u64 {
        let found = self.field(name).and_then(|value| value.parse().ok());
        found.unwrap_or_else(|| panic!("a line `{name}: NUMBER` was expected of\n{self}"))
    }
}

impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}\n{}(exit code {:?})", self.command, self.text, self.code)
    }
}
