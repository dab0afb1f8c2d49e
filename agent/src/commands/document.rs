//! Files of tasks and pods: the JSON of proto3, or the same as TOML.

use std::io::Read;
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::Error;

/// `-` is stdin. What does not begin like JSON is TOML.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let name = path.display();
    let mut text = String::new();
    let read = if path.as_os_str() == "-" {
        std::io::stdin().read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|mut file| file.read_to_string(&mut text))
    };
    read.map_err(|e| Error::Refused(format!("read {name}: {e}")))?;
    parse(&text).map_err(|e| Error::Refused(format!("{name}: {e}")))
}

fn parse<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    if text.trim_start().starts_with('{') {
        return serde_json::from_str(text).map_err(|e| e.to_string());
    }
    // Through a value: 64 bit integers and bytes are what proto3's JSON says they are.
    let value: serde_json::Value = toml::from_str(text).map_err(|e| e.to_string())?;
    serde_json::from_value(value).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use hafen_protocol::v1;

    use super::parse;

    #[test]
    fn both_say_the_same() {
        let json = r#"{"id": "a", "root": {"image": "busybox"}, "command": ["true"], "env": {"A": "1"},
                       "resources": {"limit": {"memory": 1024}}, "kill": {"grace": "5s"}}"#;
        let toml = "id = \"a\"\ncommand = [\"true\"]\nroot.image = \"busybox\"\nresources.limit.memory = 1024\n\
                    [env]\nA = \"1\"\n[kill]\ngrace = \"5s\"\n";
        let spec: v1::TaskSpec = parse(json).unwrap();
        assert_eq!(spec.id, "a");
        assert_eq!(parse::<v1::TaskSpec>(toml), Ok(spec));
        assert!(parse::<v1::TaskSpec>("idd = \"a\"\n").unwrap_err().contains("idd"));
    }
}
