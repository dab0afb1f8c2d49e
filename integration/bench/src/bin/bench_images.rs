//! `bench-images`: what it costs to make a root file system of an image, against skopeo with umoci and Podman.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::Parser;
use hafen_bench::bundle::{self, Kind};
use hafen_bench::host::Host;
use hafen_bench::images::layout::{self, Made};
use hafen_bench::images::programs::{self as images, OURS, Place, Program, Verb};
use hafen_bench::images::recipe::{Recipe, recipes};
use hafen_bench::images::registry::Registry;
use hafen_bench::images::report::{Line, NO_IMAGE, Report, START};
use hafen_bench::measure::{Bench, Settings, Subject, interruption};
use hafen_bench::programs;
use hafen_bench::report::{Row, tell};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Measures pull, import and unpacking of two images, of 60 layers and of 50,000 files, and a second start from what
/// is unpacked: hafen, skopeo with umoci, and Podman, interleaved, each run on a fresh store.
///
/// Programs are taken from HAFEN, HAFEN_OCI, SKOPEO, UMOCI, PODMAN and HAFEN_REGISTRY, else from the folder of this
/// program, else from PATH.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// Measured runs of each program with each image
    #[arg(long, default_value_t = 5)]
    runs: u32,
    /// Measured starts
    #[arg(long, default_value_t = 60)]
    starts: u32,
    /// Runs of each program before the measured ones
    #[arg(long, default_value_t = 1)]
    warmup: u32,
    /// Seconds after which a run is killed
    #[arg(long, default_value_t = 600)]
    timeout: u64,
    /// Seed of the order of the programs
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only these programs (hafen, "skopeo+umoci", "skopeo+umoci raw", podman)
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Small images, to see that everything works
    #[arg(long)]
    small: bool,
    /// Parent of the folder that everything is in
    #[arg(long, default_value = "/var/tmp")]
    dir: PathBuf,
}

type Error = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    tell("bench-images", run(&Options::parse()))
}

fn run(options: &Options) -> Result<String, Error> {
    let stopwatch = programs::stopwatch()?;
    let runtime = programs::locate(programs::OURS, "HAFEN_OCI").ok_or("no program `hafen-oci`")?;
    let interrupted = interruption()?;
    let recipes = recipes(options.small);
    let space = Space::look(&options.dir, &recipes)?;
    let host = Host::read()?;
    let scene = Scene::new(options, &host)?;
    let bench = |rounds, pause| Bench {
        settings: Settings {
            rounds,
            warmup: options.warmup,
            timeout: Duration::from_secs(options.timeout),
            pause: Duration::from_millis(pause),
            seed: options.seed,
        },
        stopwatch: &stopwatch,
        interrupted: &interrupted,
    };
    let all = All {
        host: &host,
        scene: &scene,
        runtime: &runtime,
        handling: bench(options.runs, 0),
        starting: bench(options.starts, 20),
    };
    let report = all.measure(options, &recipes, &space)?;
    Ok(if options.json { format!("{:#}", report.json()) } else { report.text() })
}

/// What the folder's file system has to have.
struct Space {
    needed_gib: f64,
}

impl Space {
    /// Of the larger image there are, unpacked, what each of four programs made; packed, which is less than half, the
    /// layout, its tar, and copies of the registry, two of umoci's, ours, and one that Podman or skopeo is making.
    fn look(folder: &Path, recipes: &[Recipe]) -> Result<Self, Error> {
        let largest = recipes.iter().map(Recipe::bytes).max().unwrap_or_default();
        let needed = 9 * largest + (64 << 20);
        let stat = nix::sys::statvfs::statvfs(folder);
        let stat = stat.map_err(|e| format!("statvfs {}: {e}", folder.display()))?;
        let free = stat.blocks_available() * stat.fragment_size();
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        let (needed_gib, free_gib) = (gib(needed), gib(free));
        if free < needed {
            let folder = folder.display();
            let text = format!(
                "{folder} has {free_gib:.1} GiB left and {needed_gib:.1} are needed: name another folder with --dir"
            );
            return Err(text.into());
        }
        Ok(Self { needed_gib })
    }
}

/// Everything that exists on the machine while the benchmark runs.
struct Scene {
    /// Before the folders, as it uses one and ends first.
    registry: Registry,
    folder: TempDir,
    /// For what runtimes keep of a container, which is a tmpfs as on a real host.
    state: TempDir,
}

impl Scene {
    fn new(options: &Options, host: &Host) -> Result<Self, Error> {
        // Podman takes a path for a name, in which it wants no capital letters.
        let name = format!("bench-images-{}", std::process::id());
        let make = |parent: &Path, what: &str| {
            tempfile::Builder::new().prefix(&name).suffix(what).rand_bytes(0).tempdir_in(parent)
        };
        let folder = make(&options.dir, "")?;
        let state = make(&host.folder_of_state(), "-state")?;
        for name in ["registry", "images", "stores", "tmp"] {
            fs::create_dir(folder.path().join(name))?;
        }
        fs::write(folder.path().join("empty"), "")?;
        let registry = Registry::start(&folder.path().join("registry"))?;
        Ok(Self { registry, folder, state })
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn store(&self, program: &str) -> PathBuf {
        self.at("stores").join(program.replace(' ', "-"))
    }
}

struct All<'a> {
    host: &'a Host,
    scene: &'a Scene,
    runtime: &'a Path,
    handling: Bench<'a>,
    starting: Bench<'a>,
}

impl All<'_> {
    fn measure(
        &self,
        options: &Options,
        recipes: &[Recipe],
        space: &Space,
    ) -> Result<Report, Error> {
        let (mut found, mut missing) = images::find(self.scene.folder.path());
        let wanted = |name: &str| options.only.is_empty() || options.only.iter().any(|o| o == name);
        found.retain(|p| wanted(p.name));
        missing.retain(|name| wanted(name));
        let (mut lines, mut about) = (Vec::new(), Vec::new());
        for recipe in recipes {
            let made = self.make(*recipe)?;
            about.push(describe(&made));
            for verb in Verb::ALL {
                lines.extend(self.handle(&found, verb, &made)?);
            }
            if found.iter().any(|p| p.name == OURS) {
                lines.extend(self.start(&made)?);
            }
            self.clear(&made)?;
        }
        let notes = programs::not_found(&missing).into_iter().collect();
        let large = recipes.last().map_or("", |r| r.name);
        Ok(Report { lines, large, facts: self.facts(&about, space), notes })
    }

    fn make(&self, recipe: Recipe) -> Result<Made, Error> {
        eprintln!("make {}", recipe.name);
        let program = fs::read("/bin/busybox").map_err(|e| format!("read /bin/busybox: {e}"))?;
        let made = layout::make(recipe, &program, &self.scene.at("images"))?;
        self.scene.registry.push(&made)?;
        Ok(made)
    }

    /// All programs, with `verb` on one image. What they import stays.
    fn handle(&self, found: &[Program], verb: Verb, made: &Made) -> Result<Vec<Line>, Error> {
        eprintln!("{} {}", verb.name(), made.name);
        let stores: Vec<PathBuf> = found.iter().map(|p| self.scene.store(p.name)).collect();
        let (scratch, empty) = (self.scene.at("tmp"), self.scene.at("empty"));
        let image = self.scene.registry.image(made.name);
        let subjects = found.iter().zip(&stores).map(|(program, store)| {
            let place = Place { store, scratch: &scratch, empty: &empty };
            images::subject(program, verb, made, &image, place)
        });
        let subjects: Vec<Subject> = subjects.collect();
        let series = self.handling.interleave(&subjects, &|| false);
        self.go_on()?;
        let mut lines = Vec::new();
        for ((program, subject), series) in found.iter().zip(subjects).zip(series) {
            let worked = verb == Verb::Import && !series.samples.is_empty();
            let disk_mib = worked.then(|| self.keep(subject)).transpose()?;
            let row = Row { version: program.version.clone(), series };
            lines.push(Line { image: made.name, verb: verb.name(), row, disk_mib });
        }
        Ok(lines)
    }

    /// Runs it once more and leaves what it makes. Returns what that takes of the disk, in MiB.
    fn keep(&self, subject: Subject) -> Result<f64, Error> {
        let once = Settings { rounds: 1, warmup: 0, ..self.handling.settings };
        let bench = Bench { settings: once, ..self.handling };
        let subject = Subject { after: vec![], ..subject };
        let series = bench.interleave(std::slice::from_ref(&subject), &|| false);
        if let Some(error) = series.into_iter().find_map(|s| s.first_error) {
            return Err(format!("{}, once more: {error}", subject.name).into());
        }
        nix::unistd::sync();
        Ok(images::allocated(&subject.state)? as f64 / f64::from(1 << 20))
    }

    /// Starts on the layers that `hafen image import` left, and on a folder.
    fn start(&self, made: &Made) -> Result<Vec<Line>, Error> {
        eprintln!("{START} {}", made.name);
        let state = self.scene.state.path();
        let (bundle, store) = (state.join("bundle"), self.scene.store(OURS));
        bundle::make(&bundle, &bundle::config(Kind::Default, "", self.host)?)?;
        let (rootfs, image) = (bundle.join("rootfs"), images::imported(made));
        let folder: &[&dyn AsRef<std::ffi::OsStr>] = &[&"--rootfs", &rootfs];
        let layers: &[&dyn AsRef<std::ffi::OsStr>] = &[&"--images", &store, &"--image", &image];
        let mut subjects = Vec::new();
        for (name, root) in [(NO_IMAGE, folder), (OURS, layers)] {
            let state = state.join(name.replace(' ', "-"));
            fs::create_dir_all(&state)?;
            subjects.push(images::start(name, self.runtime, &state, root));
        }
        let series = self.starting.interleave(&subjects, &|| false);
        fs::remove_dir_all(&bundle)?;
        self.go_on()?;
        let version = programs::ask_version(self.runtime, state);
        let line = |series| {
            let row = Row { version: version.clone(), series };
            Line { image: made.name, verb: START, row, disk_mib: None }
        };
        Ok(series.into_iter().map(line).collect())
    }

    /// The next image needs the space.
    fn clear(&self, made: &Made) -> Result<(), Error> {
        let stores = self.scene.at("stores");
        fs::remove_dir_all(&stores)?;
        fs::create_dir(&stores)?;
        fs::remove_dir_all(&made.layout)?;
        Ok(fs::remove_file(&made.archive)?)
    }

    fn go_on(&self) -> Result<(), Error> {
        match self.handling.interrupted.load(Ordering::Relaxed) {
            true => Err("interrupted".into()),
            false => Ok(()),
        }
    }

    fn facts(&self, about: &[String], space: &Space) -> Vec<(&'static str, Value)> {
        let on = |folder: &Path| self.host.fs_type(folder).to_owned();
        let mut facts = self.host.facts();
        facts.extend([
            ("everything_on", on(self.scene.folder.path()).into()),
            ("state_of_containers_on", on(self.scene.state.path()).into()),
            ("space_needed_gib", json!((space.needed_gib * 10.0).round() / 10.0)),
            ("images", about.join("; ").into()),
        ]);
        facts
    }
}

fn describe(made: &Made) -> String {
    let mib = |bytes: u64| bytes >> 20;
    format!(
        "{}: {} layers, {} files, {} MiB as tar, {} MiB packed",
        made.name,
        made.layers,
        made.files,
        mib(made.unpacked),
        mib(made.packed)
    )
}
