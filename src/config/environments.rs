//! Which environments a configuration has: one for each overlay beside its main file.

use std::path::Path;

use super::layers::{Sources, overlay_form};
use super::problem::Problem;
use super::yaml::plain_io;

/// The names of all environments, in their order.
pub fn environments(sources: &Sources) -> Result<Vec<String>, Problem> {
    let main = sources.main_file()?;
    let folder = main.parent().unwrap_or(Path::new("/"));
    let failed = |error: std::io::Error| Problem::of_file(format!("cannot be opened: {}", plain_io(&error)), folder);
    let (stem, extension) = overlay_form(&main);
    let mut names: Vec<String> = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let inside = name
            .to_str()
            .and_then(|name| name.strip_prefix(&format!("{stem}-"))?.strip_suffix(&format!(".{extension}")));
        names.extend(inside.filter(|name| !name.is_empty()).map(str::to_owned));
    }
    names.sort();
    Ok(names)
}
