//! Groups: generations under a hot reader, and what becomes of one that is refused, gone back from, or left half done.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{Mode, OFlags, open, openat};
use zeroize::Zeroizing;

use super::*;
use crate::render::generation::Place;
use crate::render::settings::{AllowedFolders, FileSettings, GroupSettings, Validation};

fn group(folder: &Path) -> GroupSettings {
    GroupSettings {
        name: "tls".to_owned(),
        folder: folder.join("tls"),
        mode: 0o700,
        validate: None,
        on_change: None,
        rollback: false,
        settle: Duration::ZERO,
        keep: 1,
        allowed_folders: AllowedFolders::default(),
    }
}

fn members(folder: &Path, group: GroupSettings) -> Vec<TemplateSettings> {
    let group = Arc::new(group);
    let of = |name: &str| TemplateSettings { group: Some(group.clone()), ..template(folder, name, None) };
    let mut both = vec![of("cert"), of("key")];
    for member in &mut both {
        let name = member.file.destination.file_name().unwrap().to_owned();
        member.file.destination = folder.join("tls").join(name);
    }
    both
}

fn prepare(folder: &Path, store: &Store) {
    fs::write(folder.join("cert.j2"), "{{ secret.pair }}").unwrap();
    fs::write(folder.join("key.j2"), "{{ secret.pair }}").unwrap();
    store.publish("pair", "one");
}

fn argv(script: &str) -> Vec<String> {
    ["sh", "-c", script].map(str::to_owned).into()
}

fn pair(bench: &Bench) -> (String, String) {
    let read = |name| fs::read_to_string(bench.path("tls").join(name)).unwrap_or_default();
    (read("cert"), read("key"))
}

async fn both_hold(bench: &Bench, text: &str) {
    eventually(|| pair(bench) == (text.to_owned(), text.to_owned())).await;
}

fn of_group(bench: &Bench) -> Condition {
    bench.handle.conditions().into_iter().find(|condition| condition.component == "group/tls").unwrap()
}

fn generations(bench: &Bench) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(bench.path(".tls.mcpeg"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Reads a pair through a folder that was opened once. `None`: the reader stood still for as many switches as generations are kept.
fn read_pair(link: &Path) -> Option<(String, String)> {
    let folder = open(link, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let read = |name| {
        let mut text = String::new();
        let file = openat(&folder, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        File::from(file).read_to_string(&mut text).unwrap();
        Some(text)
    };
    Some((read("cert")?, read("key")?))
}

#[test]
fn ten_thousand_switches_show_a_hot_reader_no_part_and_no_mixture() {
    // In memory where there is such a file system: it is the order of things that counts, not the disk.
    let memory = Path::new("/dev/shm");
    let folder = tempfile::tempdir_in(if memory.is_dir() { memory } else { Path::new("/tmp") }).unwrap();
    let settings = GroupSettings { keep: 3, ..group(folder.path()) };
    let place = Place::of(&settings);
    let files = ["cert", "key"].map(|name| FileSettings {
        destination: settings.folder.join(name),
        ..template(folder.path(), name, None).file
    });
    // Long enough for a reader to meet a half of it.
    let bytes = |number: u32| Zeroizing::new(format!("{number:08}").repeat(1000).into_bytes());
    let write = |number| {
        let built = place.build(&[(&files[0], bytes(number)), (&files[1], bytes(number))]).unwrap();
        let Some(built) = built else { return false };
        place.switch_to(built.number).unwrap();
        built.keep();
        place.prune(settings.keep, None).unwrap();
        true
    };
    assert!(write(0));
    let (is_over, reads, missed) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let Some((cert, key)) = read_pair(&settings.folder) else {
                    missed.fetch_add(1, Ordering::Relaxed);
                    continue;
                };
                assert_eq!(cert.len(), 8000, "a part of a file");
                assert!(cert == key && cert == cert[..8].repeat(1000), "a mixed pair");
                // By path, each file is old or new, and whole.
                match fs::read_to_string(settings.folder.join("key")) {
                    Ok(key) => assert!(key.len() == 8000 && key == key[..8].repeat(1000), "a part of a file"),
                    Err(_) => drop(missed.fetch_add(1, Ordering::Relaxed)),
                }
                reads.fetch_add(1, Ordering::Relaxed);
            }
        });
        for number in 1..=10_000 {
            assert!(write(number));
            assert!(number % 10 > 0 || !write(number), "the same bytes are no new generation");
        }
        is_over.store(true, Ordering::Relaxed);
    });
    let (reads, missed) = (reads.into_inner(), missed.into_inner());
    assert!(reads > 1000 && missed < reads / 10, "{reads} reads, {missed} missed");
    assert_eq!(place.current().unwrap(), Some(10_001));
    assert_eq!(fs::read_dir(folder.path().join(".tls.mcpeg")).unwrap().count(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_changes_as_one_and_is_told_once_and_not_for_the_same_bytes() {
    let make = |folder: &Path| {
        let count = command(format!("cat {0}/tls/cert {0}/tls/key >> {0}/hooks; echo >> {0}/hooks", folder.display()));
        members(folder, GroupSettings { on_change: count, ..group(folder) })
    };
    let mut bench = Bench::start(prepare, make);
    assert_eq!(bench.ready.settled().await, ReadyState::Ready);
    bench.holds("hooks", "oneone\n").await;
    bench.store.publish("pair", "one");
    bench.store.publish("pair", "two");
    bench.holds("hooks", "oneone\ntwotwo\n").await;
    eventually(|| bench.names().len() == 4).await;
    assert_eq!(bench.names(), ["group.switched", "hook.ran", "group.switched", "hook.ran"]);
    assert_eq!(fs::read_link(bench.path("tls")).unwrap(), Path::new(".tls.mcpeg/0000002"));
    assert_eq!((of_group(&bench).state, generations(&bench).len()), (ConditionState::Ok, 2));
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_file_that_is_refused_holds_back_all() {
    let make = |folder: &Path| {
        let mut members = members(folder, group(folder));
        let (argv, timeout) = (argv("! grep -q bad {file}"), Duration::from_secs(5));
        let argv = argv.into_iter().collect();
        members[1].validate = Some(Validation { argv, timeout });
        members
    };
    let bench = Bench::start(prepare, make);
    both_hold(&bench, "one").await;
    bench.store.publish("pair", "bad");
    eventually(|| of_group(&bench).state == ConditionState::Degraded).await;
    let message = of_group(&bench).message;
    assert!(message.contains("tls/key is refused by its validation: sh ended with exit status: 1"), "{message}");
    assert_eq!(pair(&bench), ("one".to_owned(), "one".to_owned()));
    assert_eq!(generations(&bench), ["0000001"], "nothing is left of it");
    bench.store.publish("pair", "good");
    both_hold(&bench, "good").await;
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_that_fails_brings_the_generation_before_back_and_its_versions_stay_in_use() {
    let make = |folder: &Path| {
        let script = format!("cat {0}/tls/cert >> {0}/told; ! grep -q bad {0}/tls/cert", folder.display());
        let on_change = command(script);
        members(folder, GroupSettings { on_change, rollback: true, ..group(folder) })
    };
    let bench = Bench::start(prepare, make);
    bench.holds("told", "one").await;
    eventually(|| !bench.path(".tls.mcpeg/untold").exists()).await;
    let held = bench.store.1.clone();
    assert_eq!(*held.lock().unwrap(), [1]);
    bench.store.publish("pair", "bad");
    bench.holds("told", "onebadone").await;
    eventually(|| of_group(&bench).message.contains("went back to the generation before")).await;
    both_hold(&bench, "one").await;
    eventually(|| bench.names().len() == 6).await;
    let expected = ["group.switched", "hook.ran", "group.switched", "hook.ran", "group.rolled_back", "hook.ran"];
    assert_eq!(bench.names(), expected);
    assert_eq!(*held.lock().unwrap(), [1], "the old version is what is in use");
    assert_eq!(fs::read_dir(bench.path(".tls.mcpeg/0000002")).unwrap().count(), 0, "what was refused does not stay");
    bench.store.publish("pair", "good");
    bench.holds("told", "onebadonegood").await;
    eventually(|| *held.lock().unwrap() == [3]).await;
    both_hold(&bench, "good").await;
    assert_eq!(fs::read_link(bench.path("tls")).unwrap(), Path::new(".tls.mcpeg/0000003"), "no number twice");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_process_left_is_swept_and_what_it_had_not_told_is_told() {
    let fill = |folder: &Path, store: &Store| {
        prepare(folder, store);
        for number in ["0000007", "0000008"] {
            fs::create_dir_all(folder.join(".tls.mcpeg").join(number)).unwrap();
            fs::write(folder.join(".tls.mcpeg").join(number).join("cert"), "one").unwrap();
        }
        fs::write(folder.join(".tls.mcpeg/0000007/key"), "one").unwrap();
        fs::write(folder.join(".tls.mcpeg/untold"), "").unwrap();
        symlink(".tls.mcpeg/0000007", folder.join("tls")).unwrap();
        symlink(".tls.mcpeg/0000008", folder.join(".tls.mcpeg-link")).unwrap();
    };
    let make = |folder: &Path| {
        let on_change = command(format!("echo told >> {}/told", folder.display()));
        members(folder, GroupSettings { on_change, ..group(folder) })
    };
    let bench = Bench::start(fill, make);
    bench.holds("told", "told\n").await;
    eventually(|| generations(&bench) == ["0000007"]).await;
    assert!(!bench.path(".tls.mcpeg-link").exists() && bench.names() == ["hook.ran"], "{:?}", bench.names());
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_in_place_of_the_folder_above_leads_nowhere() {
    let fill = |folder: &Path, store: &Store| {
        prepare(folder, store);
        // Somebody else's, which looks like what a killed process has left.
        fs::create_dir_all(folder.join("outside/.tls.mcpeg/0000009")).unwrap();
    };
    let make = |folder: &Path| {
        let (inside, link) = (folder.join("in"), folder.join("in/tls"));
        fs::create_dir(&inside).unwrap();
        let allowed_folders = AllowedFolders::new([inside.as_path()]);
        let group = GroupSettings { folder: link, allowed_folders: allowed_folders.clone(), ..group(folder) };
        let mut both = members(folder, group);
        for member in &mut both {
            member.file.destination = inside.join("tls").join(member.file.destination.file_name().unwrap());
            member.file.allowed_folders = allowed_folders.clone();
        }
        // Before the part starts, so that its sweep meets it; and while it runs, below.
        fs::rename(&inside, folder.join("away")).unwrap();
        symlink(folder.join("outside"), &inside).unwrap();
        both
    };
    let bench = Bench::start(fill, make);
    eventually(|| of_group(&bench).message.contains("outside of render.allowed_folders")).await;
    let outside = || -> Vec<_> { walk(&bench.path("outside")) };
    assert_eq!(outside(), [".tls.mcpeg", ".tls.mcpeg/0000009"], "nothing is made and nothing removed");
    fs::remove_file(bench.path("in")).unwrap();
    fs::rename(bench.path("away"), bench.path("in")).unwrap();
    bench.store.publish("pair", "two");
    eventually(|| fs::read_to_string(bench.path("in/tls/key")).is_ok_and(|text| text == "two")).await;
    fs::rename(bench.path("in"), bench.path("away")).unwrap();
    symlink(bench.path("outside"), bench.path("in")).unwrap();
    bench.store.publish("pair", "three");
    eventually(|| of_group(&bench).message.contains("outside of render.allowed_folders")).await;
    assert_eq!(outside(), [".tls.mcpeg", ".tls.mcpeg/0000009"]);
    assert_eq!(fs::read_to_string(bench.path("away/tls/key")).unwrap(), "two");
    bench.stop().await;
}

/// The names of all that is below, in order.
fn walk(root: &Path) -> Vec<String> {
    let (mut names, mut folders) = (Vec::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            names.push(entry.path().strip_prefix(root).unwrap().display().to_string());
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            }
        }
    }
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_a_link_of_ours_is_never_replaced() {
    let fill = |folder: &Path, store: &Store| {
        prepare(folder, store);
        fs::create_dir(folder.join("tls")).unwrap();
        fs::write(folder.join("tls/precious"), "kept").unwrap();
    };
    let bench = Bench::start(fill, |folder| members(folder, group(folder)));
    eventually(|| of_group(&bench).message.contains("tls is a folder and is not replaced")).await;
    assert_eq!(fs::read_to_string(bench.path("tls/precious")).unwrap(), "kept");
    fs::remove_dir_all(bench.path("tls")).unwrap();
    symlink("/etc", bench.path("tls")).unwrap();
    eventually(|| of_group(&bench).message.contains("a link that leads elsewhere")).await;
    fs::remove_file(bench.path("tls")).unwrap();
    both_hold(&bench, "one").await;
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_that_come_together_make_one_generation_from_one_version() {
    let fill = |folder: &Path, store: &Store| {
        prepare(folder, store);
        fs::write(folder.join("key.j2"), "{{ secret.pair }}{{ secret.other }}").unwrap();
        store.publish("other", "");
    };
    let make = |folder: &Path| members(folder, GroupSettings { settle: Duration::from_millis(400), ..group(folder) });
    let bench = Bench::start(fill, make);
    both_hold(&bench, "one").await;
    bench.store.publish("pair", "two");
    tokio::time::sleep(Duration::from_millis(50)).await;
    bench.store.publish("other", "!");
    eventually(|| pair(&bench) == ("two".to_owned(), "two!".to_owned())).await;
    assert_eq!(bench.names(), ["group.switched", "group.switched"]);
    bench.stop().await;
}

#[tokio::test]
async fn once_writes_a_whole_group_or_none_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let (store, audit) = (Store::default(), Records::default());
    prepare(folder.path(), &store);
    let members = members(folder.path(), group(folder.path()));
    fs::write(folder.path().join("key.j2"), "{{ secret.nope }}").unwrap();
    let (rendered, failures) = render_once(&members, &store, &audit).await;
    assert!(rendered.is_empty() && failures[0].contains("no such item"), "{failures:?}");
    assert!(!folder.path().join("tls").exists());
    fs::write(folder.path().join("key.j2"), "{{ secret.pair }}").unwrap();
    let (rendered, _) = render_once(&members, &store, &audit).await;
    assert!(rendered.len() == 2 && rendered.iter().all(|file| file.changed));
    assert_eq!(fs::read_to_string(folder.path().join("tls/key")).unwrap(), "one");
    assert!(!render_once(&members, &store, &audit).await.0[0].changed);
}
