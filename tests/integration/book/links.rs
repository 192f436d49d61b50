//! Every link between the project's documents leads somewhere.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::markdown::{Document, in_repository, resolve};

/// The Markdown files of the repository, from its root.
pub fn documents() -> Vec<String> {
    let mut documents = Vec::new();
    collect(Path::new(""), &mut documents);
    documents.sort();
    documents
}

fn collect(folder: &Path, documents: &mut Vec<String>) {
    // what was generated or installed, and the messages of a gateway that was run here
    const NOT_OURS: [&str; 6] = ["target", "node_modules", "data", "blends", "dist", "build"];
    let root = in_repository("");
    for entry in fs::read_dir(root.join(folder)).expect("a folder of the repository") {
        let entry = entry.expect("an entry of a folder");
        let name = entry.file_name().into_string().expect("a name in UTF-8");
        let path = folder.join(&name);
        if name.starts_with('.') || NOT_OURS.contains(&name.as_str()) {
            continue;
        }
        if entry.file_type().expect("a type").is_dir() {
            collect(&path, documents);
        } else if name.ends_with(".md") {
            documents.push(path.to_str().expect("UTF-8").to_owned());
        }
    }
}

#[test]
fn every_link_leads_to_a_file_and_a_heading() {
    let documents: BTreeMap<String, Document> =
        documents().into_iter().map(|path| (path.clone(), Document::read(&path))).collect();
    assert!(documents.len() > 20, "{:?}", documents.keys());
    let mut broken = Vec::new();
    for document in documents.values() {
        for (line, link) in document.links.iter().filter(|(_, link)| !link.contains("://")) {
            let (target, anchor) =
                link.split_once('#').map_or((link.as_str(), None), |(path, name)| (path, Some(name)));
            let path = if target.is_empty() { document.path.clone() } else { resolve(&document.path, target) };
            let has_anchor = anchor
                .is_none_or(|anchor| documents.get(&path).is_some_and(|document| document.anchors.contains(anchor)));
            if !in_repository(&path).exists() || !has_anchor {
                broken.push(format!("{}:{line}: {link}", document.path));
            }
        }
    }
    assert!(broken.is_empty(), "these links lead nowhere:\n{}", broken.join("\n"));
}
