//! Pickles as workers send them: what `pickle.dumps` writes is understood, nothing else is, and nothing is executed.

use crate::harness::{Farm, forwarded, frame};

const PICKLE: &str = "application/octet-stream";

/// A pickle written by hand of a worker's message; `data` are the opcodes that leave `DATA` on the stack.
fn by_hand(data: &[u8]) -> Vec<u8> {
    let head =
        b"\x80\x04}(\x8c\x07USER_ID\x8c\x08worker-1\x8c\x09MAIN_DATA}(\x8c\x04TYPE\x8c\x0eFRAME_RENDERED\x8c\x04DATA";
    [head, data, b"uu."].concat()
}

#[test]
fn pickles_of_every_protocol_carry_every_type() {
    let mut farm = Farm::start();
    let values = [
        "{'b': 1, 'a': {'d': {}, 'c': []}}",
        "[[], [1], list(range(1500))]",
        "((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4))",
        "(set(), {1, 'x', (2, b'')}, frozenset(), frozenset([frozenset([1])]))",
        "('', 'ascii', 'äß€中😀', 'x' * 255, 'x' * 256, 'x' * 70000, 'line\\nline\\r\\\\u0041\\x00')",
        "(b'', b'\\x00\\xff\\n', bytes(255), bytes(256), bytes(range(256)) * 300)",
        "(bytearray(), bytearray(b'\\x00\\xff'), bytearray(70000))",
        "(0, 1, -1, 255, 256, 65535, 65536, 2**31 - 1, 2**31, -2**31, 2**63, -2**63 - 1, 2**2040, -2**20000)",
        "(0.0, -0.0, 0.1, 1e308, 5e-324, inf, -inf, nan)",
        "(True, False, None)",
        "{None: 1, True: 2, 7: 3, 2.5: 4, b'k': 5, (1, 'x'): 6, frozenset([1]): 7, 's': 8}",
    ];
    for protocol in 0..=5 {
        for value in values {
            let body = farm.peer.dumps(&frame("FRAME_RENDERED", value), protocol);
            let answer = farm.post_bytes(PICKLE, &body);
            assert_eq!(answer.status, 200, "protocol {protocol}: {value}: {answer:?}");
            let expected = farm.peer.show(&forwarded("FRAME_RENDERED", value));
            assert_eq!(farm.take().value, expected, "protocol {protocol}: {value}");
        }
    }
}

#[test]
fn containers_referenced_more_than_once_are_understood_at_every_protocol() {
    let mut farm = Farm::start();
    let value = "(lambda a: (lambda d: {'x': [a, a, d], 'y': d, 'z': (a, (d, d))})({'k': a}))(['item'])";
    for protocol in 0..=5 {
        for kind in ["FRAME_RENDERED", "RENDER_COMPLETED"] {
            let body = farm.peer.dumps(&frame(kind, value), protocol);
            assert_eq!(farm.post_bytes(PICKLE, &body).status, 200, "protocol {protocol}");
            assert!(farm.take().value.contains("'y': {'k': ['item']}"), "protocol {protocol}");
        }
    }
}

#[test]
fn an_envelope_whose_parts_are_shared_is_understood() {
    let mut farm = Farm::start();
    let value = "(lambda s: {'USER_ID': s, 'MAIN_DATA': {'TYPE': s, 'DATA': [s, s]}})('FRAME_RENDERED')";
    for protocol in 0..=5 {
        let body = farm.peer.dumps(value, protocol);
        assert_eq!(farm.post_bytes(PICKLE, &body).status, 200, "protocol {protocol}");
        let expected = forwarded("FRAME_RENDERED", "['FRAME_RENDERED', 'FRAME_RENDERED']")
            .replace("'worker-1'", "'FRAME_RENDERED'");
        assert_eq!(farm.take().value, expected, "protocol {protocol}");
    }
}

#[test]
fn a_lone_surrogate_in_a_pickle_is_taken_as_python_takes_it() {
    let mut farm = Farm::start();
    let body = farm.peer.dumps(&frame("FRAME_RENDERED", "'\\ud800'"), 4);
    assert_eq!(farm.post_bytes(PICKLE, &body).status, 200);
    assert_eq!(farm.take().value, forwarded("FRAME_RENDERED", "'\\ud800'"));
}

#[test]
fn bytes_after_the_stop_are_not_passed_on() {
    let mut farm = Farm::start();
    let mut body = farm.peer.dumps(&frame("FRAME_RENDERED", "1"), 4);
    body.extend(b"cos\nsystem\n");
    assert_eq!(farm.post_bytes(PICKLE, &body).status, 200, "CPython ignores them");
    let message = farm.take();
    assert_eq!(message.value, forwarded("FRAME_RENDERED", "1"));
    assert!(!message.body.windows(6).any(|part| part == b"system"));
}

#[test]
fn a_pickle_that_names_a_class_or_function_is_refused_and_never_acted_upon() {
    let mut farm = Farm::start();
    let trace = farm.setup().path("trace");
    let command = format!("touch {}", trace.display());
    let refused: Vec<(&str, Vec<u8>)> = vec![
        ("os.system, GLOBAL", format!("cos\nsystem\n(V{command}\ntR").into_bytes()),
        ("posix.system, GLOBAL", format!("cposix\nsystem\n(V{command}\ntR").into_bytes()),
        ("os.system, INST", format!("(V{command}\nios\nsystem\n").into_bytes()),
        ("os.system, OBJ", format!("(cos\nsystem\nV{command}\no").into_bytes()),
        ("os.system, STACK_GLOBAL", [b"\x8c\x02os\x8c\x06system\x93(V", command.as_bytes(), b"\ntR"].concat()),
        ("builtins.eval", b"cbuiltins\neval\n(V1\ntR".to_vec()),
        ("builtins.getattr", b"cbuiltins\ngetattr\n".to_vec()),
        ("a function named, never called", b"cos\nsystem\n".to_vec()),
        ("collections.OrderedDict", b"ccollections\nOrderedDict\n)R".to_vec()),
        ("datetime.date", b"cdatetime\ndate\n(C\x04\x07\xe8\x01\x01tR".to_vec()),
        ("complex", b"cbuiltins\ncomplex\n(K\x01K\x02tR".to_vec()),
        ("copyreg's reconstructor", b"ccopyreg\n_reconstructor\n(cbuiltins\nobject\ncbuiltins\nobject\nNtR".to_vec()),
        ("an extension code", b"\x82\x01".to_vec()),
        ("a persistent id", b"Pid\n".to_vec()),
        ("a persistent id on the stack", b"K\x01Q".to_vec()),
        ("an object's state", b"}}b".to_vec()),
        ("NEWOBJ", b"cbuiltins\nset\n)\x81".to_vec()),
        ("_codecs.encode with another codec", b"c_codecs\nencode\n(Vx\nVrot13\ntR".to_vec()),
        ("_codecs.decode", b"c_codecs\ndecode\n(C\x01xVutf-8\ntR".to_vec()),
        ("a bare builtins.set", b"cbuiltins\nset\n".to_vec()),
        ("builtins.bytearray of a size", b"cbuiltins\nbytearray\n(I1000000000\ntR".to_vec()),
        ("builtins.set, its name continued", b"cbuiltins\nset.__init__\n)R".to_vec()),
    ];
    for (what, data) in refused {
        let error = farm.post_bytes(PICKLE, &by_hand(&data)).failure(400);
        assert!(!error.is_empty(), "{what}");
        let order = [
            b"\x80\x04}(\x8c\x04TYPE\x8c\x0eADD_BUFFER_MSG\x8c\x04DATA}(\x8c\x0bBUFFER_UUID\x8c\x01u\x8c\x0aBUFFER_MSG",
            data.as_slice(),
            b"uu.",
        ]
        .concat();
        farm.order_bytes(PICKLE, &order).failure(400);
    }
    farm.expect_nothing_for_the_user_manager();
    farm.expect_no_message("u");
    assert!(!trace.exists(), "the command in a pickle was executed");
}

#[test]
fn a_refused_class_is_named() {
    let farm = Farm::start();
    let error = farm.post_bytes(PICKLE, &by_hand(b"cos\nsystem\n(Vtrue\ntR")).failure(400);
    assert!(error.contains("os.system"), "{error}");
}

#[test]
fn what_cpython_refuses_to_load_is_refused() {
    let mut farm = Farm::start();
    for (what, data) in [
        ("a list as a key", b"}(]K\x01u".as_slice()),
        ("a dict as a key", b"}(}K\x01u"),
        ("a list in a set", b"\x8f(]\x90"),
        ("a set in a frozenset", b"(\x8f\x91"),
        ("a tuple with a list as a key", b"}(]\x85K\x01u"),
        ("a key without a value", b"}(K\x01u"),
        ("bad UTF-8", b"\x8c\x02\xff\xfe"),
        ("a memo that was never put", b"h\x63"),
        ("an opcode that does not exist", b"\xff"),
        ("a pop from nothing", b"000000000000"),
        ("append to a number", b"K\x01K\x02a"),
        ("items for a number", b"K\x01(K\x01K\x02u"),
        ("a mark that is missing", b"NNtN"),
        ("an integer that is none", b"Ix\n"),
        ("a float that is none", b"Fx\n"),
        ("a string without quotes", b"Sx\n"),
        ("a bytes' length past the end", b"B\xff\xff\xff\x7fx"),
        ("a bytes' length past every end", b"\x8e\xff\xff\xff\xff\xff\xff\xff\xffx"),
        ("a negative length", b"\x8b\xff\xff\xff\xff"),
        ("a frame past the end", b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f"),
        ("a protocol of the future", b"\x80\x06N"),
    ] {
        let body = by_hand(data);
        let error = farm.post_bytes(PICKLE, &body).failure(400);
        assert!(!error.is_empty(), "{what}");
    }
    let whole = farm.peer.dumps(&frame("FRAME_RENDERED", "{'n': [1, (2, {3}), b'bytes', 'text', 1.5]}"), 4);
    for len in 0..whole.len() {
        farm.post_bytes(PICKLE, &whole[..len]).failure(400);
    }
    farm.expect_nothing_for_the_user_manager();
}

#[test]
fn a_nesting_of_200_levels_works_and_what_goes_beyond_a_bound_is_refused_with_the_bound_named() {
    let mut farm = Farm::start();
    for protocol in 0..=5 {
        let value = "(lambda f: f(f, 190))(lambda f, n: [] if n == 0 else [{'d': f(f, n - 2)}])";
        let body = farm.peer.dumps(&frame("FRAME_RENDERED", value), protocol);
        assert_eq!(farm.post_bytes(PICKLE, &body).status, 200, "protocol {protocol}");
        assert!(farm.take().value.contains(&"}]".repeat(95)), "protocol {protocol}");
    }
    for levels in [100_000, 1_000_000] {
        let error =
            farm.post_bytes(PICKLE, &by_hand(&[b"]".repeat(levels), b"a".repeat(levels - 1)].concat())).failure(400);
        assert!(error.contains("nest") || error.contains("deep") || error.contains("level"), "{error}");
        assert!(error.contains(|c: char| c.is_ascii_digit()), "the bound is named: {error}");
    }
}

#[test]
fn integers_of_20_000_digits_work() {
    let mut farm = Farm::start();
    for protocol in 0..=5 {
        for value in ["10 ** 19999 + 7", "-(10 ** 19999) - 7"] {
            for kind in ["FRAME_RENDERED", "RENDER_COMPLETED"] {
                let body = farm.peer.dumps(&frame(kind, value), protocol);
                let answer = farm.post_bytes(PICKLE, &body);
                assert_eq!(answer.status, 200, "protocol {protocol}, {kind}: {answer:?}");
                let digits = farm.peer.show(value);
                assert!(farm.take().value.contains(&format!("'DATA': {digits}")), "protocol {protocol}, {kind}");
            }
        }
    }
}

#[test]
fn a_structure_that_unfolds_without_end_is_forwarded_folded_or_refused() {
    let farm = Farm::start();
    // Each level holds the one below it twice, 60 times over.
    let mut pickle = b"]q\x00".to_vec();
    for level in 0..60_u8 {
        pickle.extend([b'0', b']', b'q', level + 1, b'(', b'h', level, b'h', level, b'e']);
    }
    let started = std::time::Instant::now();
    let answer = farm.post_bytes(PICKLE, &by_hand(&pickle));
    assert!(answer.status == 200 || answer.status == 400, "{answer:?}");
    let completed = by_hand(&pickle);
    let at = completed.windows(14).position(|part| part == b"FRAME_RENDERED").expect("the type");
    let completed = [&completed[..at - 1], b"\x10RENDER_COMPLETED", &completed[at + 14..]].concat();
    let answer = farm.post_bytes(PICKLE, &completed);
    assert!(answer.status == 200 || answer.status == 400, "{answer:?}");
    assert!(started.elapsed() < std::time::Duration::from_secs(5), "{:?}", started.elapsed());
    assert!(farm.peak_rss_kib() < 512 << 10, "{} KiB", farm.peak_rss_kib());
}
