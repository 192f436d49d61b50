//! Links on the path of a .blend file: followed if the file is in a permitted folder, whichever that is.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use crate::harness::{Farm, Setup};

/// A server with two blend roots, `blend` and `disk/CustomerData`, and their paths.
fn farm_with_two_roots() -> (Farm, PathBuf, PathBuf) {
    let setup = Setup::default();
    let (first, second) = (setup.blend_root(), setup.path("disk/CustomerData"));
    fs::create_dir_all(&second).expect("a second root");
    let args = ["--blend-root", first.to_str().expect("UTF-8"), "--blend-root", second.to_str().expect("UTF-8")];
    (Farm::of(setup.args(args)), first, second)
}

#[track_caller]
fn assert_delivered(farm: &mut Farm, path: &str, content: &str) {
    farm.leave_blend("id-1", path);
    let value = farm.fetch_value("id-1");
    assert!(value.ends_with(&format!("'BINARY_BLEND_FILE': b'{content}'}}}}")), "{path}: {value}");
}

#[track_caller]
fn assert_refused(farm: &mut Farm, path: &str, reason: &str) {
    farm.leave_blend("refused", path);
    let answer = farm.fetch("refused");
    assert!(answer.status == 400 && answer.value.contains(reason), "{path}: no {reason:?} in {answer:?}");
}

#[test]
fn an_absolute_link_to_a_file_or_folder_of_the_same_root_is_followed() {
    let mut farm = Farm::start();
    let root = farm.setup().blend_root();
    farm.blend_file("v12/scene.blend", b"version 12");
    symlink(root.join("v12/scene.blend"), root.join("latest.blend")).expect("a link");
    symlink(root.join("v12"), root.join("current")).expect("a link");
    // through `..` that leaves the root and comes back
    symlink(format!("../{}/v12", root.file_name().expect("a name").display()), root.join("around")).expect("a link");
    for path in ["latest.blend", "current/scene.blend", "around/scene.blend", "current/../v12/scene.blend"] {
        assert_delivered(&mut farm, path, "version 12");
        assert_delivered(&mut farm, root.join(path).to_str().expect("UTF-8"), "version 12");
    }
}

#[test]
fn a_link_from_one_root_into_another_is_followed() {
    let (mut farm, first, second) = farm_with_two_roots();
    fs::create_dir(second.join("job")).expect("a folder");
    fs::write(second.join("job/scene.blend"), "customer").expect("a file");
    symlink(&second, first.join("CustomerData")).expect("a link to the root itself");
    symlink(second.join("job"), first.join("job")).expect("a link to a folder");
    symlink("../disk/CustomerData", first.join("relative")).expect("a relative link");
    symlink(second.join("job/scene.blend"), first.join("scene.blend")).expect("a link to a file");
    symlink(first.join("job"), second.join("back")).expect("a link back");
    for path in [
        "CustomerData/job/scene.blend",
        "job/scene.blend",
        "relative/job/scene.blend",
        "scene.blend",
        "relative/back/scene.blend",
        "CustomerData/job/../job/scene.blend",
    ] {
        assert_delivered(&mut farm, path, "customer");
        assert_delivered(&mut farm, first.join(path).to_str().expect("UTF-8"), "customer");
    }
    assert_refused(&mut farm, "CustomerData/job/none.blend", "missing");
}

#[test]
fn a_link_through_a_folder_outside_is_followed_where_the_file_lies_inside() {
    let (mut farm, first, second) = farm_with_two_roots();
    fs::write(second.join("scene.blend"), "customer").expect("a file");
    // as /mnt/current -> /mnt/disk7
    symlink(farm.setup().path("disk"), farm.setup().path("current")).expect("a link outside");
    symlink(farm.setup().path("current/CustomerData/scene.blend"), first.join("scene.blend")).expect("a link");
    assert_delivered(&mut farm, "scene.blend", "customer");
    let other_name = farm.setup().path("current/CustomerData/scene.blend");
    assert_delivered(&mut farm, other_name.to_str().expect("UTF-8"), "customer");
}

#[test]
fn a_root_that_is_a_link_serves_under_either_name_and_where_it_points_to_now() {
    let setup = Setup::default();
    let (link, folders) = (setup.path("current"), ["one", "two"].map(|name| setup.path(name)));
    for folder in &folders {
        fs::create_dir(folder).expect("a folder");
        fs::write(folder.join("scene.blend"), folder.file_name().expect("a name").as_encoded_bytes()).expect("a file");
    }
    symlink(&folders[0], &link).expect("a link");
    let mut farm = Farm::of(setup.args(["--blend-root", link.to_str().expect("UTF-8")]));
    let [one, two] = folders.each_ref().map(|folder| folder.join("scene.blend").display().to_string());
    assert_delivered(&mut farm, "scene.blend", "one");
    assert_delivered(&mut farm, &one, "one");
    assert_refused(&mut farm, &two, "outside");
    fs::remove_file(&link).expect("removed");
    symlink(&folders[1], &link).expect("a link");
    assert_delivered(&mut farm, "scene.blend", "two");
    assert_delivered(&mut farm, &two, "two");
    assert_refused(&mut farm, &one, "outside");
}

#[test]
fn a_link_out_of_all_roots_is_refused_whether_something_is_there_or_not() {
    let (mut farm, first, second) = farm_with_two_roots();
    fs::write(farm.setup().path("disk/secret.blend"), "secret").expect("a file outside");
    let targets = ["../secret.blend", "../none.blend", "../../blend/../disk/secret.blend", "/etc/passwd", "/none", "/"];
    for (number, target) in targets.into_iter().enumerate() {
        symlink(target, second.join(format!("{number}.blend"))).expect("a link");
        symlink(second.join(format!("{number}.blend")), first.join(format!("{number}.blend"))).expect("a link");
        assert_refused(&mut farm, &format!("{number}.blend"), "outside the permitted folders: a symbolic link");
    }
}
