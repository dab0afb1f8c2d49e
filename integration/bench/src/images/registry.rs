//! Debian's `docker-registry`, on a loopback port of its own.

use std::fs::{self, File};
use std::io;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::layout::{Made, TAG};
use super::says;
use crate::programs::locate;

const START: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub struct Registry {
    /// As in a name of an image: 127.0.0.1:PORT.
    pub host: String,
    log: PathBuf,
    child: Child,
}

impl Registry {
    /// It keeps what it is given in `folder`, which must exist.
    pub fn start(folder: &Path) -> io::Result<Self> {
        let missing = || io::Error::other("no program `docker-registry`");
        let program = locate("docker-registry", "HAFEN_REGISTRY").ok_or_else(missing)?;
        // Free a moment ago; that somebody else takes it meanwhile is seen as no answer.
        let host = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let (config, log) = (folder.join("registry.yml"), folder.join("registry.log"));
        let text = format!(
            "version: 0.1\nlog: {{ level: warn }}\nstorage: {{ filesystem: {{ rootdirectory: {} }} }}\nhttp: {{ addr: \"{host}\" }}\n",
            folder.join("storage").display()
        );
        fs::write(&config, text).map_err(says("write", &config))?;
        let output = File::create(&log).map_err(says("create", &log))?;
        let mut command = Command::new(&program);
        command.arg("serve").arg(&config).stdin(Stdio::null());
        command.stdout(output.try_clone()?).stderr(output);
        let child = command.spawn().map_err(says("run", &program))?;
        let mut registry = Self { host, log, child };
        registry.wait()?;
        Ok(registry)
    }

    fn wait(&mut self) -> io::Result<()> {
        let began = Instant::now();
        while TcpStream::connect(&self.host).is_err() {
            if began.elapsed() > START || self.child.try_wait()?.is_some() {
                let said = fs::read_to_string(&self.log).unwrap_or_default();
                let said = said.trim().lines().last().unwrap_or("it says nothing").to_owned();
                return Err(io::Error::other(format!("docker-registry does not answer: {said}")));
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// The name that an image has here.
    pub fn image(&self, name: &str) -> String {
        format!("{}/bench/{name}:{TAG}", self.host)
    }

    pub fn push(&self, made: &Made) -> io::Result<()> {
        let from = format!("oci:{}:{TAG}", made.layout.display());
        let to = format!("docker://{}", self.image(made.name));
        let mut command = Command::new("skopeo");
        command.args(["--insecure-policy", "copy", "-q", "--dest-tls-verify=false", &from, &to]);
        let output = command.output().map_err(says("run", Path::new("skopeo")))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(io::Error::other(format!("skopeo copy {from} {to}: {said}")))
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // Fails only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
