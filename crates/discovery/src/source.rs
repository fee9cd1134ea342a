//! The two sources, as `--source` names them.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Where objects come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// `kube`: the Kubernetes API, by the kubeconfig (`KUBECONFIG`, `~/.kube/config`) or else the pod's service account.
    Kube,
    /// `dir:PATH`: a folder of manifests.
    Dir(PathBuf),
}

/// A `--source` that is neither.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no source: write 'kube' or 'dir:PATH'")]
pub struct SourceError(String);

impl FromStr for Source {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        match text.split_once(':') {
            None if text == "kube" => Ok(Self::Kube),
            Some(("dir", path)) if !path.is_empty() => Ok(Self::Dir(PathBuf::from(path))),
            _ => Err(SourceError(text.to_owned())),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kube => f.write_str("kube"),
            Self::Dir(path) => write!(f, "dir:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_read_and_written_alike() {
        for text in ["kube", "dir:/etc/posthouse", "dir:relative", "dir:/with:colon"] {
            assert_eq!(text.parse::<Source>().unwrap().to_string(), text);
        }
        for text in ["", "dir", "dir:", "kube:", "file:/x", "Kube"] {
            assert!(text.parse::<Source>().unwrap_err().to_string().contains("dir:PATH"), "{text}");
        }
    }
}
