//! What is never sent, whatever the blend roots are: the data directory and the files that hold secrets. And the blend
//! root that there is by default.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use crate::harness::{Ca, Client, Farm, Peer, Setup, files_below, new_mount_namespace, order, request};

#[track_caller]
fn assert_outside(farm: &mut Farm, path: &str) {
    farm.leave_blend("refused", path);
    let answer = farm.fetch("refused");
    assert!(answer.status == 400, "{path}: {answer:?}");
    assert!(answer.value.contains("outside the permitted folders"), "{path}: {answer:?}");
}

#[test]
fn the_data_directory_is_never_sent_whatever_the_roots_and_names_are() {
    let setup = Setup::default();
    let all = setup.path("");
    let data = setup.data_dir();
    // the folder with the data directory in it, and the data directory itself
    let args = ["--blend-root", all.to_str().expect("UTF-8"), "--blend-root", data.to_str().expect("UTF-8")];
    fs::create_dir(&data).expect("a data directory");
    let mut farm = Farm::of(setup.args(args));
    fs::write(all.join("scene.blend"), "scene").expect("a file");
    farm.leave_blend("id-1", "scene.blend");
    assert!(farm.fetch_value("id-1").contains("b'scene'"));

    farm.leave("secret", "'a message for somebody else'");
    let files = files_below(&data);
    assert!(files.len() > 2, "{files:?}");
    symlink(&data, all.join("link")).expect("a link");
    for (number, (path, _)) in files.iter().enumerate() {
        let inside = path.strip_prefix(&data).expect("inside").to_str().expect("UTF-8");
        let (soft, hard) = (format!("soft-{number}"), format!("hard-{number}"));
        symlink(path, all.join(&soft)).expect("a link");
        fs::hard_link(path, all.join(&hard)).expect("a hard link");
        for path in [path.to_str().expect("UTF-8"), &format!("data/{inside}"), &format!("link/{inside}"), &soft, &hard]
        {
            assert_outside(&mut farm, path);
        }
    }
}

#[test]
fn files_that_another_layer_of_the_configuration_overrides_are_never_sent() {
    let setup = Setup::default();
    let root = setup.blend_root();
    for name in ["of-the-file", "of-the-environment", "of-the-flag"] {
        fs::write(root.join(name), "secret-token-of-many-characters").expect("tokens");
    }
    let [in_file, in_environment, as_flag] =
        ["of-the-file", "of-the-environment", "of-the-flag"].map(|name| root.join(name).display().to_string());
    let [overridden, read] = ["overridden.toml", "read.toml"].map(|name| root.join(name).display().to_string());
    fs::write(&overridden, "worker-token-file = \"never read\"\n").expect("a configuration file");
    fs::write(&read, format!("worker-token-file = {in_file:?}\n")).expect("a configuration file");
    let setup = setup.env("USER_HTTP_SERVER_CONFIG", &overridden).args(["--config", &read]);
    let setup = setup.env("USER_HTTP_SERVER_WORKER_TOKEN_FILE", &in_environment);
    let mut farm = Farm::of(setup.args(["--worker-token-file", &as_flag]));
    let headers = [("Authorization", "Bearer secret-token-of-many-characters")];
    fs::write(root.join("scene.blend"), "scene").expect("a file");
    farm.leave_blend("id-1", "scene.blend");
    assert_eq!(farm.ask("GET", "id-1", &headers).status, 200);
    for path in [&in_file, &in_environment, &as_flag, &overridden, &read] {
        farm.leave_blend("id-1", path);
        let answer = farm.ask("GET", "id-1", &headers);
        let value = farm.peer.loads(&answer.body);
        assert!(answer.status == 400 && value.contains("outside the permitted folders"), "{path}: {value}");
    }
}

#[test]
fn files_of_tokens_keys_certificates_and_settings_are_never_sent_even_where_they_are_exchanged() {
    let ca = Ca::new();
    let setup = Setup::default();
    let root = setup.blend_root();
    let tokens = ["worker-tokens", "api-tokens"].map(|name| root.join(name));
    for path in &tokens {
        fs::write(path, "secret-token-of-many-characters").expect("tokens");
    }
    let [cert, key] = ca.issue().write(&root, "server");
    let config = root.join("farm.toml");
    fs::write(&config, format!("worker-token-file = {:?}\napi-token-file = {:?}\n", tokens[0], tokens[1]))
        .expect("a configuration file");
    fs::write(root.join("scene.blend"), "scene").expect("a file");
    let config = config.to_str().expect("UTF-8");
    let server = setup.args(["--config", config, "--api-tls-cert", &cert, "--api-tls-key", &key]).start();
    let client = Client::trusting(&ca);
    let headers =
        [("Authorization", "Bearer secret-token-of-many-characters"), ("Content-Type", "application/octet-stream")];
    let mut peer = Peer::get();
    let mut answer_to = |path: &str| {
        let blend =
            format!("{{'DATA': {{'META_DATA': 'EXTRACT_BLEND_FILE_FROM_PATH', 'BINARY_BLEND_FILE': {path:?}}}}}");
        let body = peer.dumps(&order("id-1", &blend), 4);
        let mut api = client.open(server.api);
        let stored = api.request("POST", "/CommunicationInterface/AddBufferMsg", &headers, &body);
        assert_eq!(stored.status, 200, "{stored:?}");
        let answer = request(server.http, "GET", "/?bufferUUID=id-1", &headers[..1], b"");
        (answer.status, peer.loads(&answer.body))
    };
    assert!(answer_to("scene.blend").1.contains("b'scene'"));
    let names = ["worker-tokens", "api-tokens", "server.pem", "server.key", "farm.toml"];
    for round in ["as they were", "exchanged"] {
        for name in names {
            fs::hard_link(root.join(name), root.join(format!("{name}.blend {round}"))).expect("a hard link");
            for path in [name.to_owned(), format!("{name}.blend {round}")] {
                let (status, value) = answer_to(&path);
                assert!(status == 400 && value.contains("outside the permitted folders"), "{path}, {round}: {value}");
            }
        }
        for name in names {
            let (old, new) = (root.join(name), root.join("new"));
            fs::copy(&old, &new).expect("a new file");
            fs::rename(&new, &old).expect("it replaces the old one");
        }
    }
}

#[test]
fn without_a_blend_root_nothing_is_sent_but_what_is_put_into_blends() {
    let mut farm = Farm::of(Setup::default().default_blend_root());
    farm.wait_for_log("blends cannot be opened");
    let folder = farm.setup().path("");
    fs::write(folder.join("scene.blend"), "beside").expect("a file");
    for path in ["data/buffer/LOCK", "scene.blend", "blend/scene.blend"] {
        farm.leave_blend("id-1", path);
        let answer = farm.fetch("id-1");
        assert!(answer.status == 400 && answer.value.contains("missing"), "{path}: {answer:?}");
    }
    for path in [folder.join("scene.blend").to_str().expect("UTF-8"), "../scene.blend"] {
        farm.leave_blend("id-1", path);
        assert_eq!(farm.fetch("id-1").status, 400, "{path}");
    }
    fs::create_dir(folder.join("blends")).expect("the default root");
    fs::write(folder.join("blends/scene.blend"), "inside").expect("a file");
    farm.leave_blend("id-1", "scene.blend");
    assert!(farm.fetch_value("id-1").contains("b'inside'"));
}

#[test]
fn a_folder_in_the_data_directory_that_may_not_be_listed_keeps_no_file_from_being_sent() {
    let setup = Setup::default();
    // root lists everything, unless it gives that up
    let is_root = rustix::process::geteuid().is_root();
    let as_others = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"];
    let (root, closed) = (setup.blend_root(), setup.data_dir().join("lost+found"));
    fs::create_dir_all(&closed).expect("a folder");
    let permit = |mode| fs::set_permissions(&closed, fs::Permissions::from_mode(mode)).expect("chmod");
    permit(0o000);
    let mut farm = Farm::of(if is_root { setup.wrapper(&as_others) } else { setup });
    fs::write(root.join("scene.blend"), "scene").expect("a file");
    fs::hard_link(root.join("scene.blend"), root.join("backup.blend")).expect("a hard link");
    farm.leave_blend("id-1", "scene.blend");
    let answer = farm.fetch("id-1");
    permit(0o755);
    assert!(answer.value.contains("b'scene'"), "{answer:?}");
}

/// These tests mount a file system.
mod mounts {
    use super::*;

    #[test]
    fn what_the_kernel_makes_up_is_never_sent_wherever_it_is_mounted() {
        let setup = Setup::default();
        for name in ["proc", "sys"] {
            fs::create_dir(setup.blend_root().join(name)).expect("a folder");
        }
        let script = "mount -t proc proc blend/proc && mount --rbind /sys blend/sys && exec \"$0\" \"$@\"";
        let mut farm = Farm::of(setup.wrapper(&[new_mount_namespace(), &["sh", "-c", script]].concat()));
        for path in ["proc/version", "proc/meminfo", "sys/kernel/uevent_seqnum"] {
            assert_outside(&mut farm, path);
        }
    }

    #[test]
    fn a_bind_mount_of_the_data_directory_is_recognised() {
        let setup = Setup::default();
        let (root, data) = (setup.blend_root(), setup.data_dir());
        for folder in [data.clone(), root.join("all"), root.join("part")] {
            fs::create_dir(folder).expect("a folder");
        }
        fs::write(root.join("file"), "").expect("a file");
        fs::write(data.join("notes"), "messages").expect("a file in the data directory");
        fs::create_dir(data.join("buffer")).expect("a folder");
        fs::write(root.join("scene.blend"), "scene").expect("a file");
        // in a mount namespace of the server's own
        let script = format!(
            "cd '{}' && mount --bind data blend/all && mount --bind data/buffer blend/part && \
             mount --bind data/notes blend/file && exec \"$0\" \"$@\"",
            setup.path("").display()
        );
        let mut farm = Farm::of(setup.wrapper(&[new_mount_namespace(), &["sh", "-c", &script]].concat()));
        for path in ["all/notes", "all/buffer/LOCK", "part/LOCK", "file"] {
            assert_outside(&mut farm, path);
        }
        farm.leave_blend("id-1", "scene.blend");
        assert!(farm.fetch_value("id-1").contains("b'scene'"));
    }
}
