//! The imports of the library against the module map in `docs/architecture.md`.
//!
//! The graph is read from the source: every path in a file that starts with `crate`, `super` or `self`, test code
//! left out. Re-exports are followed to the file that defines the name. A module and the files below it count as one
//! where the parent declares the child; the graph is about siblings and about modules at the top level.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use syn::visit::{self, Visit};

/// A module's path from the crate's root, `["store", "sqlite"]`; the root itself is empty.
type Module = Vec<String>;

/// Imports of one file.
#[derive(Default)]
struct Imports {
    /// Absolute paths that the file names, as written.
    paths: BTreeSet<Vec<String>>,
    /// Names that `use` brings into the module, with the absolute path of each.
    names: BTreeMap<String, Vec<String>>,
}

/// Collects [`Imports`] from a file's syntax tree.
struct Collector {
    module: Module,
    imports: Imports,
}

impl Collector {
    /// Makes a path absolute; `None` for a path into another crate.
    fn absolute(&self, path: &[String]) -> Option<Vec<String>> {
        let mut base: Vec<String> = match path.first()?.as_str() {
            "crate" => Vec::new(),
            "self" => self.module.clone(),
            "super" => self.module[..self.module.len().checked_sub(1)?].to_vec(),
            _ => return None,
        };
        let mut rest = &path[1..];
        while rest.first().is_some_and(|segment| segment == "super") {
            base.pop()?;
            rest = &rest[1..];
        }
        base.extend_from_slice(rest);
        Some(base)
    }

    fn add_use(&mut self, prefix: &[String], tree: &syn::UseTree) {
        let with = |ident: &syn::Ident| [prefix, &[ident.to_string()]].concat();
        match tree {
            syn::UseTree::Path(path) => self.add_use(&with(&path.ident), &path.tree),
            syn::UseTree::Group(group) => group.items.iter().for_each(|item| self.add_use(prefix, item)),
            syn::UseTree::Name(name) if name.ident == "self" => self.add_name(prefix, None),
            syn::UseTree::Name(name) => self.add_name(&with(&name.ident), None),
            syn::UseTree::Rename(rename) => {
                self.add_name(&with(&rename.ident), Some(rename.rename.to_string()));
            }
            syn::UseTree::Glob(_) => self.add_name(prefix, None),
        }
    }

    fn add_name(&mut self, path: &[String], rename: Option<String>) {
        // A path that names a child module without `self::`, as in `pub use error::StoreError`.
        let absolute = self.absolute(path).unwrap_or_else(|| [self.module.as_slice(), path].concat());
        if let Some(name) = rename.or_else(|| path.last().cloned()) {
            self.imports.names.insert(name, absolute.clone());
        }
        self.imports.paths.insert(absolute);
    }
}

/// Whether an item is compiled for tests alone.
fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        syn::Meta::List(list) => list.path.is_ident("cfg") && list.tokens.to_string() == "test",
        _ => false,
    })
}

impl<'ast> Visit<'ast> for Collector {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        let attributes = match item {
            syn::Item::Fn(item) => &item.attrs,
            syn::Item::Impl(item) => &item.attrs,
            syn::Item::Mod(item) => &item.attrs,
            syn::Item::Struct(item) => &item.attrs,
            syn::Item::Use(item) => &item.attrs,
            _ => return visit::visit_item(self, item),
        };
        if !is_test(attributes) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.add_use(&[], &item.tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if let Some(absolute) = self.absolute(&segments) {
            self.imports.paths.insert(absolute);
        }
        visit::visit_path(self, path);
    }
}

/// The files of the library, test code left out.
struct Library {
    files: BTreeMap<Module, Imports>,
}

impl Library {
    fn read() -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut files = BTreeMap::new();
        let mut folders = vec![source.clone()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).expect("a folder of the library") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|extension| extension == "rs") {
                    let relative = path.strip_prefix(&source).expect("below src").with_extension("");
                    let module: Module =
                        relative.iter().map(|part| part.to_str().expect("UTF-8").to_owned()).collect();
                    if module.iter().any(|part| matches!(part.as_str(), "tests" | "lib" | "main")) {
                        continue;
                    }
                    let text = std::fs::read_to_string(&path).expect("a source file");
                    let syntax =
                        syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                    let mut collector = Collector { module: module.clone(), imports: Imports::default() };
                    collector.visit_file(&syntax);
                    files.insert(module, collector.imports);
                }
            }
        }
        Self { files }
    }

    /// The file that defines the item at `path`: the longest module in it, re-exports followed.
    fn defining_file(&self, path: &[String]) -> Option<&Module> {
        let mut path = path.to_vec();
        // Re-exports of re-exports end somewhere; the bound is for a cycle between them.
        for _ in 0..8 {
            let length = (1..=path.len()).rev().find(|length| self.files.contains_key(&path[..*length]))?;
            let (module, imports) = self.files.get_key_value(&path[..length])?;
            match path.get(length).and_then(|name| imports.names.get(name)) {
                Some(target) if *target != path => path = [target.as_slice(), &path[length + 1..]].concat(),
                _ => return Some(module),
            }
        }
        panic!("{path:?}: a cycle of re-exports");
    }

    /// For each file, the other files whose items it uses. Pairs of a module and an ancestor of it are left out.
    fn file_graph(&self) -> BTreeMap<Module, BTreeSet<Module>> {
        let is_ancestor = |one: &Module, other: &Module| other.starts_with(one);
        self.files
            .iter()
            .map(|(module, imports)| {
                let used = imports.paths.iter().filter_map(|path| self.defining_file(path));
                let used = used.filter(|used| !is_ancestor(used, module) && !is_ancestor(module, used));
                (module.clone(), used.cloned().collect())
            })
            .collect()
    }

    /// For each module at the top level, the other such modules that it names.
    fn module_graph(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut graph: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (module, imports) in &self.files {
            let used = graph.entry(module[0].clone()).or_default();
            for path in &imports.paths {
                if let Some(top) = path.first()
                    && *top != module[0]
                    && self.files.contains_key(std::slice::from_ref(top))
                {
                    used.insert(top.clone());
                }
            }
        }
        graph
    }
}

/// A cycle in a graph, as the nodes along it.
fn find_cycle<Node: Ord + Clone>(graph: &BTreeMap<Node, BTreeSet<Node>>) -> Option<Vec<Node>> {
    fn visit<Node: Ord + Clone>(
        graph: &BTreeMap<Node, BTreeSet<Node>>,
        node: &Node,
        path: &mut Vec<Node>,
        done: &mut BTreeSet<Node>,
    ) -> Option<Vec<Node>> {
        if let Some(start) = path.iter().position(|visited| visited == node) {
            return Some(path[start..].to_vec());
        }
        if !done.insert(node.clone()) {
            return None;
        }
        path.push(node.clone());
        let cycle = graph.get(node)?.iter().find_map(|next| visit(graph, next, path, done));
        path.pop();
        cycle
    }
    let mut done = BTreeSet::new();
    graph.keys().find_map(|node| visit(graph, node, &mut Vec::new(), &mut done))
}

/// The module map of `docs/architecture.md`: the modules in order, each with those that it uses.
fn documented_map() -> Vec<(String, BTreeSet<String>)> {
    let page = include_str!("../../docs/architecture.md");
    let map = page.split("```text\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a module map");
    map.lines()
        .map(|line| {
            let (module, used) = line.split_once("->").unwrap_or((line, ""));
            let used = used.split(',').map(|name| name.trim().to_owned()).filter(|name| !name.is_empty());
            (module.trim().to_owned(), used.collect())
        })
        .collect()
}

#[test]
fn imports_between_files_have_no_cycle() {
    let cycle = find_cycle(&Library::read().file_graph());
    assert_eq!(cycle, None, "these files import each other in a circle");
}

#[test]
fn module_map_in_the_documentation_equals_the_imports() {
    let graph = Library::read().module_graph();
    let documented = documented_map();
    let map: BTreeMap<_, _> = documented.iter().cloned().collect();
    let lines = graph.iter().map(|(module, used)| {
        let used: Vec<&str> = used.iter().map(String::as_str).collect();
        if used.is_empty() { module.clone() } else { format!("{module} -> {}", used.join(", ")) }
    });
    let found = lines.collect::<Vec<_>>().join("\n");
    assert!(map == graph, "docs/architecture.md has another map. The imports are:\n{found}");
}

#[test]
fn modules_use_only_modules_below_them_in_the_map() {
    let documented = documented_map();
    let order: Vec<&String> = documented.iter().map(|(module, _)| module).collect();
    let rank = |module: &String| order.iter().position(|other| *other == module);
    for (module, used) in &documented {
        for used in used {
            assert!(rank(module) < rank(used), "{module} uses {used}, which stands above it");
        }
    }
}

#[test]
fn cycle_is_found_in_a_graph_that_has_one() {
    let graph = |edges: &[(u8, u8)]| {
        let mut graph: BTreeMap<u8, BTreeSet<u8>> = BTreeMap::new();
        for (from, to) in edges {
            graph.entry(*from).or_default().insert(*to);
            graph.entry(*to).or_default();
        }
        graph
    };
    assert_eq!(find_cycle(&graph(&[(1, 2), (1, 3), (2, 3)])), None);
    assert_eq!(find_cycle(&graph(&[(1, 2), (2, 3), (3, 2)])), Some(vec![2, 3]));
}
