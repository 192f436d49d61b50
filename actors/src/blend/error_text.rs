//! The error texts for a path that names no file: what is wrong with it, and what would be right. A file that exists is
//! sent whatever its name looks like, because on Linux all of these names are valid.

use std::ffi::OsStr;

use unicode_normalization::UnicodeNormalization;

/// The length of Linux's longest path, in bytes (`PATH_MAX` without the final NUL).
const MAX_PATH: usize = 4095;

/// Why a file is outside the blend roots although its path begins in one.
pub const LINK_LEAVES: &str = "a symbolic link on its path leads out of them";

/// Why a file is missing if its blend root is.
pub const ROOT_IS_MISSING: &str = "its blend root does not exist; is it mounted?";

/// Why a file is missing if its name is too long for the file system.
pub const NAME_TOO_LONG: &str = "a name in it is longer than the file system allows (usually 255 bytes)";

/// Why no file can have this path.
pub fn impossible(path: &str) -> Option<String> {
    if path.contains('\0') {
        return Some("the path contains a NUL character, which is never valid; send it without that".to_owned());
    }
    (path.len() > MAX_PATH).then(|| format!("the path has {} bytes; at most {MAX_PATH} are possible", path.len()))
}

/// What the sender may have meant.
pub fn hint(path: &str) -> Option<String> {
    let what = kind(path)?;
    Some(format!("{what}; send a path of this server, relative to the first blend root or absolute inside one"))
}

fn kind(path: &str) -> Option<&'static str> {
    let bytes = path.as_bytes();
    let backslash = path.contains('\\');
    Some(if path.starts_with("\\\\") {
        "it names a Windows share (UNC)"
    } else if let Some(rest) = path.strip_prefix("//") {
        if rest.contains(['/', '\\']) {
            "it begins with //, so it is relative to a file that is open in Blender, or names a Windows share (UNC)"
        } else {
            "it begins with //, so it is relative to a file that is open in Blender"
        }
    } else if bytes.len() >= 2 && bytes[0].is_ascii_alphabetic() && bytes[1] == b':' {
        "it is a Windows path, with a drive letter"
    } else if is_url(path) {
        "it is a URL, not a path"
    } else if path.starts_with('~') {
        "~ is not replaced by a home folder here"
    } else if path.contains('$') || path.matches('%').count() >= 2 {
        "environment variables are not replaced here"
    } else if backslash {
        "it contains backslashes, which do not separate folders on Linux; use /"
    } else if path.trim() != path {
        "it begins or ends with white space"
    } else {
        return None;
    })
}

fn is_url(path: &str) -> bool {
    let Some((scheme, rest)) = path.split_once(':') else { return false };
    let is_scheme = scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme.chars().all(|char| char.is_ascii_alphanumeric() || "+-.".contains(char));
    is_scheme && (rest.starts_with("//") || scheme.eq_ignore_ascii_case("file"))
}

/// The name in its other Unicode forms, each with the error text to use if a file with that form exists.
pub fn other_forms(name: &OsStr) -> Vec<(String, String)> {
    let Some(name) = name.to_str() else { return Vec::new() };
    let forms = [("composed (NFC)", name.nfc().collect::<String>()), ("decomposed (NFD)", name.nfd().collect())];
    let others = forms.into_iter().filter(|(_, other)| other != name);
    others
        .map(|(form, other)| {
            let why = format!(
                "a file or folder of that name exists in another Unicode form, which is {form}; send the name in that \
                 form, or rename the file or folder"
            );
            (other, why)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{hint, impossible, other_forms};

    #[test]
    fn each_kind_of_path_that_is_none_of_this_server_is_named() {
        for (path, word) in [
            ("C:\\farm\\x.blend", "Windows path"),
            ("c:/farm/x.blend", "Windows path"),
            ("\\\\NAS\\share\\x.blend", "UNC"),
            ("//NAS/share/x.blend", "UNC"),
            ("//x.blend", "open in Blender"),
            ("//textures/x.blend", "open in Blender"),
            ("file:///srv/x.blend", "URL"),
            ("file:/srv/x.blend", "URL"),
            ("smb://nas/x.blend", "URL"),
            ("~/x.blend", "home folder"),
            ("~user/x.blend", "home folder"),
            ("$BLENDS/x.blend", "environment variables"),
            ("${BLENDS}/x.blend", "environment variables"),
            ("%USERPROFILE%/x.blend", "environment variables"),
            ("scenes\\x.blend", "backslashes"),
            ("x.blend\n", "white space"),
        ] {
            let hint = hint(path).unwrap_or_default();
            assert!(hint.contains(word) && hint.contains("relative to the first blend root"), "{path}: {hint}");
        }
        for path in ["x.blend", "/srv/blends/x.blend", "a b/c:d.blend", "100%.blend", "../x.blend"] {
            assert_eq!(hint(path), None, "{path}");
        }
    }

    #[test]
    fn a_path_that_no_file_can_have_has_an_error_of_its_own() {
        assert!(impossible("a\0b").expect("impossible").contains("NUL"));
        assert!(impossible(&"x/".repeat(2048)).expect("impossible").contains("4096 bytes"));
        assert_eq!(impossible(&"x".repeat(4095)), None);
    }

    #[test]
    fn the_other_forms_of_a_name_are_those_that_it_is_not_in() {
        let forms = |name: &str| other_forms(name.as_ref()).into_iter().map(|(other, _)| other).collect::<Vec<_>>();
        assert_eq!(forms("caf\u{e9}"), ["cafe\u{301}"]);
        assert_eq!(forms("cafe\u{301}"), ["caf\u{e9}"]);
        assert_eq!(forms("e\u{301} \u{e9}"), ["\u{e9} \u{e9}", "e\u{301} e\u{301}"]);
        assert!(forms("cafe").is_empty());
    }
}
