//! Rendered frames, as workers post them.

use super::load::Request;

const OCTET_STREAM: &str = "application/octet-stream";

/// `POST /` of a frame with so many bytes of image, as `pickle.dumps` of protocol 4 writes it, without frames.
pub fn post(image: usize) -> Request {
    Request::post_bytes("/", OCTET_STREAM, &pickle(image))
}

fn pickle(image: usize) -> Vec<u8> {
    let mut out = b"\x80\x04}\x94(".to_vec();
    text(&mut out, "USER_ID");
    text(&mut out, "bench");
    text(&mut out, "MAIN_DATA");
    out.extend(b"}\x94(");
    text(&mut out, "TYPE");
    text(&mut out, "FRAME_RENDERED");
    text(&mut out, "DATA");
    out.extend(b"}\x94");
    text(&mut out, "IMAGE");
    // BINBYTES, BINUNICODE's sister for bytes of up to 4 GiB
    out.push(b'B');
    out.extend(u32::try_from(image).expect("an image below 4 GiB").to_le_bytes());
    out.extend((0..image).map(|n| (n % 251) as u8));
    out.extend(b"\x94suu.");
    out
}

/// SHORT_BINUNICODE and MEMOIZE.
fn text(out: &mut Vec<u8>, text: &str) {
    out.push(0x8c);
    out.push(u8::try_from(text.len()).expect("a short text"));
    out.extend(text.as_bytes());
    out.push(0x94);
}
