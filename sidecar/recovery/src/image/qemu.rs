//! QEMU's tools, which know qcow2: `qemu-img` makes images and says what is in them, `qemu-nbd` lets
//! us read and write them over a local socket, so that no copy of the disk lies beside the image.

use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use backstay_host::clock;
use backstay_types::{ByteLen, PointId};
use serde::Deserialize;

use super::ImageError;
use super::nbd::{LocalNbd, Nbd};

/// How long `qemu-nbd` may take to open an image.
const START_MAX: Duration = Duration::from_secs(30);
/// Longest line of `qemu-img map`.
const LINE_MAX: u64 = 64 << 10;

/// Makes an empty qcow2.
pub(super) fn create(path: &Path, size: ByteLen) -> Result<(), ImageError> {
    // QEMU's disks are whole sectors; so the last one is padded with zeroes.
    let size = size.0.next_multiple_of(512).to_string();
    run(
        "qemu-img",
        Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(named(path)).arg(size),
    )
    .map(drop)
}

/// What an image says of itself.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Info {
    virtual_size: u64,
    #[serde(default)]
    encrypted: bool,
    backing_filename: Option<String>,
    format_specific: Option<Specific>,
}

#[derive(Deserialize)]
struct Specific {
    data: SpecificData,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct SpecificData {
    data_file: Option<String>,
    corrupt: Option<bool>,
}

/// The disk's size of a qcow2 that stands for itself. One that names other files of this host is
/// refused: anyone who made the image would choose which files of ours are shipped.
pub(super) fn size_of_qcow2(path: &Path) -> Result<ByteLen, ImageError> {
    let said = run(
        "qemu-img",
        Command::new("qemu-img").args(["info", "--output=json", "-f", "qcow2"]).arg(named(path)),
    )?;
    let info: Info = serde_json::from_slice(&said)
        .map_err(|e| ImageError::Qemu(format!("qemu-img info {}: {e}", path.display())))?;
    let data = info.format_specific.map(|specific| specific.data);
    let elsewhere = info.backing_filename.or(data.as_ref().and_then(|data| data.data_file.clone()));
    if let Some(file) = elsewhere {
        return Err(ImageError::Refused(format!(
            "{} is not the whole disk: it builds on {file:?}. Make one image of both first \
             (qemu-img convert -O qcow2), if you trust what it names",
            path.display()
        )));
    }
    if info.encrypted {
        let what = "is encrypted by QEMU; decrypt it first (qemu-img convert)";
        return Err(ImageError::Refused(format!("{} {what}", path.display())));
    }
    if data.and_then(|data| data.corrupt) == Some(true) {
        let what = "is marked corrupt; see qemu-img check";
        return Err(ImageError::Refused(format!("{} {what}", path.display())));
    }
    Ok(ByteLen(info.virtual_size))
}

/// A part of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) struct ImageExtent {
    pub start: u64,
    pub length: u64,
    /// It reads as zeroes.
    pub zero: bool,
}

/// The parts of a qcow2 in their order, as `qemu-img map` says them, one a line: the map of a large
/// image need not fit into memory.
pub(super) struct ImageExtents {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl ImageExtents {
    pub fn of(path: &Path) -> Result<Self, ImageError> {
        let mut child = Command::new("qemu-img")
            .args(["map", "--output=json", "-f", "qcow2"])
            .arg(named(path))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(|e| not_started("qemu-img", &e))?;
        let Some(lines) = child.stdout.take() else {
            return Err(ImageError::Qemu("qemu-img map: no output".into()));
        };
        Ok(Self { child, lines: BufReader::new(lines) })
    }

    /// The next part; `None` after the last.
    pub fn next(&mut self) -> Result<Option<ImageExtent>, ImageError> {
        let wrong = |why: String| ImageError::Qemu(format!("qemu-img map: {why}"));
        loop {
            let mut line = String::new();
            let read = (&mut self.lines).take(LINE_MAX).read_line(&mut line);
            if read.map_err(|e| wrong(e.to_string()))? == 0 {
                let status = self.child.wait().map_err(|e| wrong(e.to_string()))?;
                return if status.success() { Ok(None) } else { Err(wrong(status.to_string())) };
            }
            let line = line.trim().trim_start_matches('[').trim_end_matches([',', ']']);
            if !line.is_empty() {
                return serde_json::from_str(line).map(Some).map_err(|e| wrong(e.to_string()));
            }
        }
    }
}

impl Drop for ImageExtents {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A qcow2 that is open for reading or writing.
pub(super) struct Served {
    nbd: LocalNbd,
    child: Child,
    dir: PathBuf,
    path: PathBuf,
}

impl Served {
    /// Has `qemu-nbd` open an image. It ends when our connection does, also if we are killed.
    pub fn open(path: &Path, write: bool) -> Result<Self, ImageError> {
        let dir = std::env::temp_dir().join(format!("backstay-nbd-{}", PointId::random()));
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .map_err(ImageError::io(format!("making {}", dir.display())))?;
        let socket = dir.join("nbd.sock");
        let mut command = Command::new("qemu-nbd");
        command.arg("--socket").arg(&socket).args(["--format=qcow2", "--cache=writeback"]);
        if !write {
            command.arg("--read-only");
        }
        let child = command
            .arg(named(path))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = match child {
            Ok(child) => child,
            Err(e) => {
                let _ = fs::remove_dir_all(&dir);
                return Err(not_started("qemu-nbd", &e));
            }
        };
        let began = clock::monotonic();
        let connected = loop {
            if let Ok(stream) = UnixStream::connect(&socket) {
                break Nbd::start(stream).map_err(|e| format!("{}: {e}", path.display()));
            }
            if let Ok(Some(status)) = child.try_wait() {
                break Err(format!("{status}: {}", last_words(&mut child)));
            }
            if clock::since(began) > START_MAX {
                break Err(format!("{} was not opened in {START_MAX:?}", path.display()));
            }
            clock::sleep(Duration::from_millis(5));
        };
        match connected {
            Ok(nbd) => Ok(Self { nbd, child, dir, path: path.into() }),
            Err(why) => {
                let _ = child.kill();
                let _ = child.wait();
                let _ = fs::remove_dir_all(&dir);
                Err(ImageError::Qemu(format!("qemu-nbd: {why}")))
            }
        }
    }

    pub fn nbd(&mut self) -> &mut LocalNbd {
        &mut self.nbd
    }

    /// Closes the image; all that was written is in it then.
    pub fn close(mut self) -> Result<(), ImageError> {
        let said = format!("closing {}", self.path.display());
        self.nbd.end().map_err(ImageError::io(said.clone()))?;
        let status = self.child.wait().map_err(ImageError::io(said.clone()))?;
        let words = last_words(&mut self.child);
        let _ = fs::remove_dir_all(&self.dir);
        match status.success() {
            true => Ok(()),
            false => Err(ImageError::Qemu(format!("qemu-nbd, {said}: {status}: {words}"))),
        }
    }

    /// Lets go of an image that will not be used.
    pub fn forget(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn last_words(child: &mut Child) -> String {
    let mut said = String::new();
    if let Some(stderr) = child.stderr.as_mut() {
        let _ = stderr.take(4096).read_to_string(&mut said);
    }
    said.trim().to_owned()
}

/// A path that QEMU takes for nothing but a file: not an option, not a protocol.
fn named(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.into())
}

fn not_started(program: &str, e: &io::Error) -> ImageError {
    ImageError::Qemu(format!("{program} could not be started: {e} (package qemu-utils)"))
}

fn run(program: &str, command: &mut Command) -> Result<Vec<u8>, ImageError> {
    let output = command.stdin(Stdio::null()).output().map_err(|e| not_started(program, &e))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(ImageError::Qemu(format!("{program}: {}", said.trim())))
}
