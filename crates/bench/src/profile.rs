//! Where the servers' time goes: `perf` beside a measured window, one text file per workload.
//!
//! A profiled window is slower than others, so its figures are for orientation only. `perf` samples all processes of the
//! cluster; the text lists functions by their own share, then by share with all they call.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

const SAMPLES_PER_SECOND: &str = "499";
/// Shares below this many percent are left out.
const SHARE_MIN: &str = "0.5";

pub struct Profile {
    perf: Child,
    data: PathBuf,
    text: PathBuf,
}

impl Profile {
    /// Samples the processes for `span` from this moment on.
    pub fn start(folder: &Path, name: &str, processes: &[u32], span: Duration) -> Result<Profile> {
        fs::create_dir_all(folder)?;
        let file: String = name.chars().map(|c| if c.is_alphanumeric() { c } else { '-' }).collect();
        let (data, text) = (folder.join(format!("{file}.data")), folder.join(format!("{file}.txt")));
        let processes: Vec<String> = processes.iter().map(u32::to_string).collect();
        let perf = Command::new("perf")
            .args([
                "record",
                "--quiet",
                "--call-graph",
                "fp",
                "--freq",
                SAMPLES_PER_SECOND,
                "--pid",
                &processes.join(","),
            ])
            .arg("--output")
            .arg(&data)
            .args(["--", "sleep", &span.as_secs_f64().to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("perf cannot be run")?;
        Ok(Profile { perf, data, text })
    }

    /// Waits for the samples and writes the text.
    pub fn finish(mut self) -> Result<()> {
        ensure!(self.perf.wait()?.success(), "perf record failed");
        let mut text = File::create(&self.text)?;
        for callers in [["--no-children", "-g", "none"], ["--children", "-g", "none"]] {
            let outcome = Command::new("perf")
                .args(["report", "--stdio", "--sort", "symbol", "--percent-limit", SHARE_MIN])
                .args(callers)
                .arg("--input")
                .arg(&self.data)
                .stdout(text.try_clone()?)
                .stderr(Stdio::null())
                .status()?;
            ensure!(outcome.success(), "perf report failed");
            std::io::Write::write_all(&mut text, b"\n")?;
        }
        fs::remove_file(&self.data)?;
        Ok(())
    }
}
