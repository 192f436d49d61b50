//! The chapter on the wire contract has every route.

use std::collections::BTreeSet;

use serde_json::Value;

use super::markdown::{code, read};

/// Methods and paths; a parameter of a path counts under any name.
type Routes = BTreeSet<(String, String)>;

fn without_names(path: &str) -> String {
    let parts = path.split('/').map(|part| if part.starts_with('{') { "{}" } else { part });
    parts.collect::<Vec<_>>().join("/")
}

fn described(path: &str) -> Routes {
    let description: Value = serde_json::from_str(&read(path)).expect("JSON");
    let paths = description["paths"].as_object().expect("paths");
    let routes = paths.iter().flat_map(|(path, methods)| {
        let methods = methods.as_object().expect("methods").keys().filter(|name| name.as_str() != "parameters");
        methods.map(|method| (method.to_uppercase(), without_names(path)))
    });
    routes.filter(|(method, _)| method != "HEAD").collect()
}

fn shown(chapter: &str) -> Routes {
    let rows = chapter.lines().filter(|line| line.starts_with("| `"));
    let calls = rows.flat_map(|row| code(row.split(" | ").next().unwrap_or_default()));
    let routes = calls.filter_map(|call| {
        let (method, path) = call.split_once(' ').filter(|(_, path)| path.starts_with('/'))?;
        let path = path.split('?').next().unwrap_or_default();
        // the digest of a .blend file
        Some((method.to_owned(), without_names(&path.replace("SHA256", "{digest}"))))
    });
    routes.collect()
}

#[test]
fn the_wire_contract_has_every_route_and_no_other() {
    let chapter = read("docs/wire-contract.md");
    let (workers, services) = chapter.split_once("\n## For the farm's services").expect("two parts");
    assert_eq!(shown(workers), described("src/api/openapi/workers.json"));
    assert_eq!(shown(services), described("src/api/openapi/services.json"));
}
