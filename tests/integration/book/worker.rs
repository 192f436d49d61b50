//! The worker of `docs/writing-a-worker.md`, through a network that breaks.

mod python {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use serde_json::json;

    use super::super::markdown::{Document, Mark};
    use crate::harness::{Peer, Program, Proxy, Server, add_buffer_msg, python, request};

    /// Takes the arguments that the worker gives to Blender; a frame is its number.
    const BLENDER: &str = "#!/bin/sh\nwhile [ $# -gt 1 ]; do shift; done\nprintf 'frame %s' \"$1\" >\"f000$1.png\"\n";

    #[test]
    fn the_worker_resumes_a_broken_transfer_and_repeats_a_lost_post_with_the_standard_library_alone() {
        let chapter = Document::read("docs/writing-a-worker.md");
        let program = Mark::File("worker.py".to_owned());
        let block = chapter.blocks.iter().find(|block| block.marks.contains(&program)).expect("the worker");
        let server = Server::start();
        // What is left at each break is larger than what the sockets and the proxy accept ahead of the worker: that
        // counts as delivered.
        let scene = b"any scene; its bytes are not looked at\n".repeat(1_600_000);
        server.blend_file("scene.blend", &scene);
        let job = json!({"DATA": {
            "META_DATA": "EXTRACT_BLEND_FILE_FROM_PATH", "BINARY_BLEND_FILE": "scene.blend", "FRAMES": [1, 2]
        }});
        assert_eq!(add_buffer_msg(&server, "job-1", &job).status, 200);
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("worker.py"), &block.text).expect("a program");
        let blender = folder.path().join("blender");
        fs::write(&blender, BLENDER).expect("a program");
        fs::set_permissions(&blender, fs::Permissions::from_mode(0o755)).expect("a program");

        let proxy = Proxy::to_http(server.http);
        // two breaks in the transfer, one in each of the first two attempts to post a frame
        proxy.cut_each_after([1_000_000, 1_000_000, usize::MAX, 200, 200]);
        let mut worker = Command::new(python());
        let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").expect("PATH"));
        // -I and -S: without packages
        worker.args(["-I", "-S", "worker.py", proxy.url().trim_end_matches('/'), "alice", "job-1"]);
        let ended = Program::start(worker.current_dir(folder.path()).env("PATH", path)).end();
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert_eq!(proxy.cuts_left(), 0, "every break has happened");
        assert!(fs::read(folder.path().join("scene.blend")).expect("the scene") == scene);

        let mut peer = Peer::get();
        for part in ["b'frame 1'", "b'frame 2'"] {
            let message = request(server.api, "GET", "/UserManager/NextMessage", &[], b"");
            let value = peer.loads(&message.body);
            assert!(value.contains(part) && value.contains("'JOB': 'job-1'"), "{value}");
        }
        let last = request(server.api, "GET", "/UserManager/NextMessage", &[], b"").json();
        assert_eq!(last["DATA"]["DATA"]["MESSAGE"]["FRAMES"], json!([1, 2]), "{last}");
        assert_eq!(request(server.api, "GET", "/UserManager/NextMessage", &[], b"").status, 204);
    }
}
