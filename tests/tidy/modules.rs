//! What the modules of a crate import from each other, read from their files.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Source, rust_sources};

/// A file of a crate as a module.
pub(crate) struct Module {
    /// Path of the file from the top of the project.
    pub(crate) file: String,
    /// Its path from the crate's root: `vmm`, `qemu`. Empty for the root itself.
    pub(crate) path: Vec<String>,
    /// What it names of its crate, outside of its tests: the line, and the path from the root.
    pub(crate) named: Vec<(usize, Vec<String>)>,
    /// The paths that it re-exports.
    exports: Vec<Vec<String>>,
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
    let (mut named, mut exports) = (Vec::new(), Vec::new());
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
        if before == "use" && at > 1 && matches!(token(at - 2), "pub" | ")") {
            exports.extend(paths.clone());
        }
        named.extend(paths.into_iter().map(|it| (*number, it)));
    }
    Module {
        file: source.path.clone(),
        path,
        named,
        exports,
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

/// Adds the paths of a `use` tree, or the one path of an expression. Gives the position after it.
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

/// A path as the module writes it, from the crate's root. A path of another crate is unchanged.
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

/// The module that a path leads to, also through re-exports.
fn target<'a>(modules: &'a [Module], path: &[String]) -> Option<&'a Module> {
    let holding = modules.iter().filter(|it| path.starts_with(&it.path));
    let module = holding.max_by_key(|it| it.path.len())?;
    let name = path.get(module.path.len());
    let exported = module.exports.iter().find(|it| it.last() == name);
    match exported {
        Some(exported) if exported != path => target(modules, exported),
        Some(_) | None => Some(module),
    }
}

/// For each folder: which of its files imports which, and where it first does.
type Arrows = BTreeMap<Vec<String>, BTreeMap<(String, String), String>>;

/// The circles of imports among the files of each folder. A file and the folder of the same name
/// are one; imports between these do not count.
pub(crate) fn circles(root: &str) -> Vec<String> {
    let modules = modules(root);
    let mut folders = Arrows::new();
    for module in &modules {
        for (number, path) in &module.named {
            let Some(target) = target(&modules, path) else {
                continue;
            };
            let both = module.path.iter().zip(&target.path);
            let shared = both.take_while(|(one, other)| one == other).count();
            let (one, other) = (module.path.get(shared), target.path.get(shared));
            if let (Some(one), Some(other)) = (one, other) {
                let folder = folders.entry(module.path[..shared].to_vec()).or_default();
                let place = format!("{}:{number}", module.file);
                folder.entry((one.clone(), other.clone())).or_insert(place);
            }
        }
    }
    let said = |(folder, arrows): (&Vec<String>, &BTreeMap<_, _>)| {
        let circle = circle(arrows)?;
        let arrow = |pair: &[String]| {
            let place = &arrows[&(pair[0].clone(), pair[1].clone())];
            format!("{} -> {} ({place})", pair[0], pair[1])
        };
        let arrows: Vec<_> = circle.windows(2).map(arrow).collect();
        Some(format!("{root}{}: {}", folder.join("/"), arrows.join(", ")))
    };
    folders.iter().filter_map(said).collect()
}

/// A path of imports from a file back to itself.
fn circle(arrows: &BTreeMap<(String, String), String>) -> Option<Vec<String>> {
    let starts: BTreeSet<_> = arrows.keys().map(|(from, _)| from).collect();
    starts.into_iter().find_map(|start| {
        let mut ways = vec![vec![start.clone()]];
        let mut seen = BTreeSet::new();
        while let Some(way) = ways.pop() {
            for (from, to) in arrows.keys() {
                if Some(from) != way.last() {
                    continue;
                }
                let longer = [&way[..], std::slice::from_ref(to)].concat();
                if to == start {
                    return Some(longer);
                }
                if seen.insert(to.clone()) {
                    ways.push(longer);
                }
            }
        }
        None
    })
}
