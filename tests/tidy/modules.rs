//! What the modules of a crate name of each other, read off their files.

use crate::{Source, rust_sources};

/// One file of a crate, as a module.
pub(crate) struct Module {
    /// Path of the file from the top of the project.
    pub(crate) file: String,
    /// Its names from the crate's root: `vmm`, `qemu`; none for the root itself.
    pub(crate) path: Vec<String>,
    /// What it names of its crate outside of its tests: the line, and the names from the root.
    pub(crate) named: Vec<(usize, Vec<String>)>,
}

/// The modules of the crate whose sources are in `root`.
pub(crate) fn modules(root: &str) -> Vec<Module> {
    let is_module = |source: &Source| source.is_in(root) && !source.is_test();
    let sources = rust_sources().into_iter().filter(is_module);
    sources.map(|source| module(root, &source)).collect()
}

fn module(root: &str, source: &Source) -> Module {
    let names = source.path[root.len()..].trim_end_matches(".rs").split('/');
    let names = names.filter(|name| !matches!(*name, "lib" | "main"));
    let path: Vec<_> = names.map(str::to_owned).collect();
    let tokens = tokens(source);
    let token = |at: usize| tokens.get(at).map_or("", |it| it.1.as_str());
    let mut named = Vec::new();
    for (at, (number, word)) in tokens.iter().enumerate() {
        let before = if at == 0 { "" } else { token(at - 1) };
        let is_rooted = matches!(word.as_str(), "crate" | "super" | "self");
        let is_path = is_rooted && before != "::" && token(at + 1) == "::";
        if !is_path && before != "use" {
            continue;
        }
        let mut paths = Vec::new();
        expand(&tokens, at, Vec::new(), &mut paths);
        let paths: Vec<_> = paths.iter().map(|it| from_root(&path, it)).collect();
        named.extend(paths.into_iter().map(|it| (*number, it)));
    }
    Module {
        file: source.path.clone(),
        path,
        named,
    }
}

/// The words, `::` and other signs of a file's code, with their lines.
fn tokens(source: &Source) -> Vec<(usize, String)> {
    let mut tokens = Vec::new();
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    for (number, line) in source.statements() {
        let mut rest = line.split(" //").next().unwrap_or_default().trim_start();
        while let Some(first) = rest.chars().next() {
            let len = match rest.find(|c| !is_word(c)).unwrap_or(rest.len()) {
                0 if rest.starts_with("::") => 2,
                0 => first.len_utf8(),
                len => len,
            };
            tokens.push((number, rest[..len].to_owned()));
            rest = rest[len..].trim_start();
        }
    }
    tokens
}

/// Adds the paths of a `use` tree, or the one path of an expression. Gives the place behind it.
fn expand(
    tokens: &[(usize, String)],
    mut at: usize,
    mut path: Vec<String>,
    paths: &mut Vec<Vec<String>>,
) -> usize {
    let token = |at: usize| tokens.get(at).map_or("", |it| it.1.as_str());
    if token(at) == "{" {
        at += 1;
        while !matches!(token(at), "}" | "") {
            at = match token(at) {
                "," => at + 1,
                "as" => at + 2,
                _ => expand(tokens, at, path.clone(), paths),
            };
        }
        return at + 1;
    }
    let is_word = token(at).starts_with(|c: char| c.is_alphabetic() || c == '_');
    if is_word {
        path.push(token(at).to_owned());
    }
    if is_word && token(at + 1) == "::" {
        return expand(tokens, at + 2, path, paths);
    }
    paths.push(path);
    at + 1
}

/// A path as a module writes it, from the crate's root. One of another crate stays its own.
fn from_root(module: &[String], path: &[String]) -> Vec<String> {
    let is_absolute = path.first().is_some_and(|first| first == "crate");
    let mut absolute = if is_absolute {
        Vec::new()
    } else {
        module.to_vec()
    };
    for name in path {
        match name.as_str() {
            "crate" | "self" => {}
            "super" => drop(absolute.pop()),
            name => absolute.push(name.to_owned()),
        }
    }
    absolute
}
