//! Models by name, from Hugging Face's hub: `hf:OWNER/REPO/FILE.gguf`.
//!
//! Files are kept where the hub's own programs keep them (`HF_HOME`), and a file that is there is not
//! asked for again; only which files a repository has is. `HF_ENDPOINT` names another server,
//! `HF_TOKEN` a user's token.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use hf_hub::api::sync::ApiBuilder;
use hf_hub::{Repo, RepoType};

/// What names of models on the hub begin with.
const SCHEME: &str = "hf:";

/// A model on the hub.
#[derive(Debug, PartialEq, Eq)]
struct Name<'a> {
    repo: String,
    /// Within the repository; the only GGUF file there, where it is not said.
    file: Option<&'a str>,
    revision: &'a str,
}

impl<'a> Name<'a> {
    /// `OWNER/REPO[@REVISION][/FILE]`.
    fn parse(name: &'a str) -> Option<Self> {
        let (owner, rest) = name.split_once('/')?;
        let (repo, file) = match rest.split_once('/') {
            Some((repo, file)) => (repo, Some(file)),
            None => (rest, None),
        };
        let (repo, revision) = repo.split_once('@').unwrap_or((repo, "main"));
        let parts = [owner, repo, revision, file.unwrap_or("-")];
        let repo = format!("{owner}/{repo}");
        parts.iter().all(|part| !part.is_empty()).then_some(Self { repo, file, revision })
    }
}

/// The file of a model: itself, or the hub's, which is downloaded where it is not here.
pub fn locate(model: &Path) -> Result<PathBuf> {
    let Some(name) = model.to_str().and_then(|model| model.strip_prefix(SCHEME)) else {
        return Ok(model.to_owned());
    };
    let Some(name) = Name::parse(name) else {
        bail!("--model {}: it is {SCHEME}OWNER/REPO[@REVISION][/FILE.gguf]", model.display());
    };
    let mut api = ApiBuilder::from_env();
    if let Some(token) = std::env::var("HF_TOKEN").ok().filter(|token| !token.is_empty()) {
        api = api.with_token(Some(token));
    }
    let repo = Repo::with_revision(name.repo, RepoType::Model, name.revision.to_owned());
    let repo = api.build()?.repo(repo);
    let asked = || format!("asking the hub for {}", model.display());
    let only;
    let file = match name.file {
        Some(file) => file,
        None => {
            let files = repo.info().with_context(asked)?.siblings.into_iter().map(|f| f.rfilename);
            only = the_one(files.filter(|file| file.ends_with(".gguf")).collect())
                .with_context(|| format!("--model {}", model.display()))?;
            &only
        }
    };
    repo.get(file).with_context(asked)
}

fn the_one(mut files: Vec<String>) -> Result<String> {
    match (files.pop(), files.len()) {
        (Some(file), 0) => Ok(file),
        (None, _) => bail!("the repository has no GGUF file"),
        (Some(last), _) => {
            files.push(last);
            bail!("name one of its files: {}", files.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_an_owner_and_a_repository() {
        let name =
            |repo: &str, file, revision| Some(Name { repo: repo.to_owned(), file, revision });
        assert_eq!(Name::parse("a/b/c.gguf"), name("a/b", Some("c.gguf"), "main"));
        assert_eq!(Name::parse("a/b@v1/c/d.gguf"), name("a/b", Some("c/d.gguf"), "v1"));
        assert_eq!(Name::parse("a/b"), name("a/b", None, "main"));
        for wrong in ["", "a", "a/", "/b", "a/b/", "a/@v1/c.gguf", "a/b@/c.gguf"] {
            assert_eq!(Name::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_file_is_named_where_there_are_several() {
        let files = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        assert_eq!(the_one(files(&["a.gguf"])).unwrap(), "a.gguf");
        assert!(the_one(files(&[])).is_err());
        let said = the_one(files(&["a.gguf", "b.gguf"])).unwrap_err().to_string();
        assert!(said.ends_with("a.gguf, b.gguf"), "{said}");
    }

    #[test]
    fn other_names_are_files() {
        assert_eq!(locate(Path::new("a/b.gguf")).unwrap(), Path::new("a/b.gguf"));
        assert!(locate(Path::new("hf:a")).is_err());
    }
}
