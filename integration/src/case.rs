//! A case, what it is given, and the run of all of them.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use nix::fcntl::{Flock, FlockArg};

use crate::bundle::Templates;
use crate::{Bundle, Call, Environment, Host, Need, Oci, Program, host, program, wait_until};

/// A test: its name, what it needs, and the function that panics when something is wrong.
pub struct Case {
    name: String,
    needs: Vec<Need>,
    body: Box<dyn FnOnce(&Test) + Send>,
}

impl Case {
    /// Usually made by [`cases!`](crate::cases); by hand for a table of cases.
    pub fn new(
        name: impl Into<String>,
        needs: Vec<Need>,
        body: impl FnOnce(&Test) + Send + 'static,
    ) -> Self {
        Self { name: name.into(), needs, body: Box::new(body) }
    }

    fn trial(self, environment: Environment) -> Trial {
        Trial::ignorable_test(self.name.clone(), move || self.run(environment))
    }

    fn run(self, environment: Environment) -> Result<Completion, Failed> {
        let missing: Vec<Need> = self.needs.iter().copied().filter(|need| !need.is_met()).collect();
        if let Some(need) = missing.iter().find(|need| need.promised_by(environment)) {
            return Err(format!(
                "this environment ({environment:?}) promises {need}, which is missing"
            )
            .into());
        }
        if !missing.is_empty() {
            let names: Vec<String> = missing.iter().map(Need::to_string).collect();
            return Ok(Completion::ignored_with(format!("needs {}", names.join(", "))));
        }
        let faults = self.attempt()?;
        if faults.is_empty() { Ok(Completion::Completed) } else { Err(faults.join("\n").into()) }
    }

    /// The test between two looks at the host. Gives everything that was wrong.
    fn attempt(self) -> Result<Vec<String>, Failed> {
        let suite = Suite::get()?;
        let _turn = suite.turn()?;
        let before = Host::snapshot();
        let test = Test::new(suite, &self.name)?;
        let mut faults: Vec<String> = attempt(|| (self.body)(&test)).err().into_iter().collect();
        faults.extend(test.leftovers());
        faults.extend(settle(&before, &test.dir));
        faults.extend(test.remove());
        Ok(faults)
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case")
            .field("name", &self.name)
            .field("needs", &self.needs)
            .finish_non_exhaustive()
    }
}

/// Cgroups go and processes end a moment after the call that asked for it; only what stays is a fault.
fn settle(before: &Host, dir: &Path) -> Option<String> {
    give_null_back();
    let mut difference = Vec::new();
    let same = wait_until(Duration::from_secs(3), || {
        difference = before.difference(&Host::snapshot());
        difference.is_empty().then_some(())
    });
    if same.is_some() {
        return None;
    }
    host::sweep(dir, &mark());
    Some(format!("the host is not as it was before:\n  {}", difference.join("\n  ")))
}

/// Clients and other runtimes give standard descriptors to the container's user, also where they are the null device of
/// the host. An ordinary user cannot, and need not, put that right.
fn give_null_back() {
    let _ = std::os::unix::fs::chown("/dev/null", Some(0), Some(0));
}

/// In every id that a test of this process gives to a container.
fn mark() -> String {
    format!("hafen-test-{}-", std::process::id())
}

/// What a test works with.
#[derive(Debug)]
pub struct Test {
    name: String,
    dir: PathBuf,
    suite: &'static Suite,
    bundles: AtomicU32,
}

impl Test {
    fn new(suite: &'static Suite, name: &str) -> Result<Self, Failed> {
        let dir = suite.folder.join(number().to_string());
        for folder in [&dir, &dir.join("calls")] {
            make_folder(folder)?;
        }
        Ok(Self { name: name.to_owned(), dir, suite, bundles: AtomicU32::new(0) })
    }

    /// The case's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A folder of the test's own, removed afterwards.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A container id that nobody else uses.
    #[must_use]
    pub fn id(&self) -> String {
        format!("{}{}", mark(), number())
    }

    /// A fresh bundle, see [`Bundle`]. Panics when busybox or `hafen-inside` is not there.
    #[must_use]
    pub fn bundle(&self) -> Bundle {
        let path =
            self.dir.join(format!("bundle-{}", self.bundles.fetch_add(1, Ordering::Relaxed)));
        let templates = self.suite.templates.get_or_init(|| Templates::new(&self.suite.folder));
        Bundle::new(path, templates.as_ref().unwrap_or_else(|e| panic!("{e}")))
    }

    /// A path in a folder that all tests of this run share. It is made by the first test that asks for it.
    #[must_use]
    pub fn shared(&self, name: &str, make: impl FnOnce(&Path)) -> PathBuf {
        let path = self.suite.folder.join(name);
        if !path.exists() {
            make(&path);
        }
        path
    }

    /// `hafen-oci` with a `--root` in the test's folder.
    #[must_use]
    pub fn oci(&self) -> Oci {
        self.runner(Program::Oci.find().unwrap_or_else(|e| panic!("{e}")))
    }

    /// The same of the release build.
    #[must_use]
    pub fn shipped(&self) -> Oci {
        self.runner(Program::Shipped.find().unwrap_or_else(|e| panic!("{e}")))
    }

    /// A call of `hafen` with a store in the test's folder.
    pub fn hafen<I: IntoIterator<Item: AsRef<OsStr>>>(&self, words: I) -> Call {
        let program = Program::Hafen.find().unwrap_or_else(|e| panic!("{e}"));
        let store = ["--images".into(), self.images().into_os_string()];
        let words = store.into_iter().chain(words.into_iter().map(|w| w.as_ref().to_owned()));
        Call::any(program, words.collect(), self.dir.join("calls")).folder(&self.dir)
    }

    /// The folder of that store.
    #[must_use]
    pub fn images(&self) -> PathBuf {
        self.dir.join("images")
    }

    /// The reference engine; it knows `run` and `delete` only.
    #[must_use]
    pub fn reference(&self) -> Oci {
        self.runner(Program::Reference.find().unwrap_or_else(|e| panic!("{e}")))
    }

    /// Another runtime on `PATH`, such as `crun`.
    #[must_use]
    pub fn peer(&self, name: &str) -> Oci {
        self.runner(program::on_path(name).unwrap_or_else(|| panic!("no {name} on PATH")))
    }

    fn runner(&self, program: PathBuf) -> Oci {
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Oci::new(program, self.dir.join("state").join(name), self.dir.join("calls"))
    }

    /// A call of any other program, on `PATH` or by its whole path, with the test's folder as working directory.
    pub fn program<I: IntoIterator<Item: AsRef<OsStr>>>(&self, name: &str, words: I) -> Call {
        let program = program::on_path(name).unwrap_or_else(|| panic!("no {name} on PATH"));
        let words = words.into_iter().map(|w| w.as_ref().to_owned()).collect();
        Call::any(program, words, self.dir.join("calls")).folder(&self.dir)
    }

    /// `sh -c SCRIPT` in the test's folder; `$OCI` is `hafen-oci` with its `--root`, for what needs a shell, such as
    /// inherited descriptors or a limit of the caller's.
    pub fn shell(&self, script: &str) -> Call {
        let oci = self.oci();
        let prefix = format!("{} --root {}", oci.program().display(), oci.root().display());
        self.program("sh", ["-c", script]).env("OCI", prefix)
    }

    /// Takes away what is left of containers, mounts and processes, for a test of something that is known to leave
    /// them. What a test leaves without this is found and is a failure.
    pub fn sweep(&self) {
        host::sweep(&self.dir, &mark());
    }

    /// Containers that were never deleted.
    fn leftovers(&self) -> Vec<String> {
        let folders = |path: &Path| -> Vec<PathBuf> {
            let entries = fs::read_dir(path).into_iter().flatten().filter_map(Result::ok);
            entries.map(|e| e.path()).filter(|p| p.is_dir()).collect()
        };
        let containers =
            folders(&self.dir.join("state")).into_iter().flat_map(|root| folders(&root));
        containers
            .filter(|path| !host::is_kept(path))
            .map(|path| format!("state of a container was left behind: {}", path.display()))
            .collect()
    }

    /// Removes the test's folder, unless something is mounted in it: whatever is mounted there must not be removed.
    fn remove(self) -> Option<String> {
        let mounts = host::mounts_below(&self.dir);
        if !mounts.is_empty() {
            return Some(format!("not removed, since these are mounted: {mounts:?}"));
        }
        fs::remove_dir_all(&self.dir).err().map(|e| format!("remove {}: {e}", self.dir.display()))
    }
}

fn number() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Folders are open for search, so that a container's user can reach its root filesystem.
fn make_folder(path: &Path) -> Result<(), Failed> {
    fs::create_dir_all(path)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755)))
        .map_err(|e| format!("mkdir {}: {e}", path.display()).into())
}

/// What all tests of this process share.
#[derive(Debug)]
struct Suite {
    folder: PathBuf,
    templates: OnceLock<Result<Templates, String>>,
}

static SUITE: OnceLock<Result<Suite, String>> = OnceLock::new();

impl Suite {
    /// Made by the first test that runs, so that listing them does nothing.
    fn get() -> Result<&'static Self, Failed> {
        SUITE.get_or_init(Self::new).as_ref().map_err(|e| e.clone().into())
    }

    fn new() -> Result<Self, String> {
        // Containers whose parent is gone become this process's children, and so can be found.
        nix::sys::prctl::set_child_subreaper(true)
            .map_err(|e| format!("PR_SET_CHILD_SUBREAPER: {e}"))?;
        remove_abandoned();
        let folder = base().join(format!("{FOLDER}{}", std::process::id()));
        make_folder(&folder).map_err(|e| e.message().unwrap_or_default().to_owned())?;
        Ok(Self { folder, templates: OnceLock::new() })
    }

    /// Held while a test runs. The folder that everybody has is locked, so no lock file is left behind.
    #[expect(clippy::unused_self, reason = "only a suite may wait for its turn")]
    fn turn(&self) -> Result<Flock<File>, Failed> {
        let path = Path::new("/var/tmp");
        let file = File::open(path).map_err(|e| format!("open {}: {e}", path.display()))?;
        Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, e)| format!("flock {}: {e}", path.display()).into())
    }
}

/// The folder of a run, with its process id behind.
const FOLDER: &str = "hafen-suite.";

/// Folders of runs that were killed, unless something is still mounted in them.
fn remove_abandoned() {
    for entry in fs::read_dir(base()).into_iter().flatten().filter_map(Result::ok) {
        let name = entry.file_name().to_string_lossy().into_owned();
        let process = name.strip_prefix(FOLDER).map(|pid| Path::new("/proc").join(pid));
        if process.is_some_and(|p| !p.exists()) && host::mounts_below(&entry.path()).is_empty() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn base() -> PathBuf {
    std::env::var_os("HAFEN_TEST_DIR").map_or_else(|| "/var/tmp".into(), PathBuf::from)
}

thread_local! {
    /// What the last panic of this thread said, and where.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs what may panic, and gives what the panic said and where, for a test that must go on after it.
///
/// # Errors
/// The panic's words.
pub fn attempt(body: impl FnOnce()) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(body))
        .map_err(|_| PANIC.with_borrow_mut(Option::take).unwrap_or_else(|| "panicked".to_owned()))
}

fn remember_panics() {
    std::panic::set_hook(Box::new(|info| {
        let text = info.payload().downcast_ref::<&str>().copied();
        let message = text
            .or_else(|| info.payload().downcast_ref::<String>().map(String::as_str))
            .unwrap_or("panicked");
        let place =
            info.location().map(|l| format!(" ({}:{})", l.file(), l.line())).unwrap_or_default();
        PANIC.set(Some(format!("{message}{place}")));
    }));
}

/// Runs the cases as the command line asks: the options of `cargo test`'s own harness, one test at a time.
#[must_use]
pub fn main(cases: Vec<Case>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Each test looks at the whole host; another at the same time would be seen.
    arguments.test_threads = Some(1);
    let environment = match Environment::from_variable() {
        Ok(environment) => environment,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    remember_panics();
    let trials = cases.into_iter().map(|case| case.trial(environment)).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    if let Some(Ok(suite)) = SUITE.get() {
        let _ = fs::remove_dir_all(&suite.folder);
    }
    conclusion.exit_code()
}
