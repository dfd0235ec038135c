//! Commands that start something elsewhere, and what runs inside them, as far as the text tells.
//!
//! gemmtune starts servers only on its own machine, so none of this is used in a configuration; it is shown, with
//! advice on how to proceed.

use std::fmt::Write as _;

use camino::Utf8Path;

use super::quote::cut;
use super::secret::masked;

/// Most characters shown of a server's command line, which may be long and worth reading in full.
const COMMAND_WIDTH: usize = 600;

/// Options of `docker run` and `docker exec` that take no value (Docker 29, podman 5); all others do.
const SWITCHES: [&str; 18] = [
    "--detach",
    "--interactive",
    "--tty",
    "--rm",
    "--privileged",
    "--init",
    "--publish-all",
    "--read-only",
    "--no-healthcheck",
    "--sig-proxy",
    "--oom-kill-disable",
    "--quiet",
    "--disable-content-trust",
    "--replace",
    "--no-hosts",
    "--no-hostname",
    "--use-api-socket",
    "--tls-verify",
];

/// Short options of one letter that take no value.
const SHORT_SWITCHES: &str = "ditPq";

/// What runs inside, for a message: `in lmsysorg/sglang:dev with SGLANG_USE_AITER=1: python3 -m sglang.launch_server
/// …`. `None` if nothing in it names SGLang.
pub fn inside(tool: &str, argv: &[&str]) -> Option<String> {
    let (place, env, inner) = match tool.split(' ').collect::<Vec<_>>().as_slice() {
        [_, verb @ ("run" | "exec" | "create")] if !tool.starts_with("kubectl") => {
            let at = argv.iter().position(|word| word == verb)? + 1;
            container(&argv[at..])?
        }
        _ => {
            let at = argv.iter().position(|word| names_sglang(word))?;
            // Starting with the interpreter, if there is one.
            let start = argv[..at]
                .iter()
                .rposition(|word| super::role::name_of(word).starts_with("python"));
            (None, Vec::new(), argv[start.unwrap_or(at)..].to_vec())
        }
    };
    let names_it = inner.iter().any(|word| names_sglang(word))
        || place.is_some_and(|place| place.contains("sglang") || place.contains("sgl-dev"));
    if !names_it {
        return None;
    }
    let mut text = String::new();
    if let Some(place) = place {
        let _ = write!(text, "in `{}`", cut(place, 80));
    }
    if !env.is_empty() {
        let _ = write!(
            text,
            " with {}",
            cut(&masked(&env).join(" "), COMMAND_WIDTH)
        );
    }
    if !inner.is_empty() {
        let command = masked(&inner);
        let command = shlex::try_join(command.iter().map(String::as_str))
            .unwrap_or_else(|_| command.join(" "));
        let separator = if text.is_empty() { "" } else { ": " };
        let _ = write!(text, "{separator}{}", cut(&command, COMMAND_WIDTH));
    }
    Some(text)
}

/// Image or container, variables, and command of `docker run` or `docker exec`, given the arguments after the verb.
fn container<'a>(argv: &[&'a str]) -> Option<(Option<&'a str>, Vec<&'a str>, Vec<&'a str>)> {
    let mut env = Vec::new();
    let mut at = 0;
    while let Some(&word) = argv.get(at) {
        at += 1;
        if !word.starts_with('-') {
            return Some((Some(word), env, argv[at..].to_vec()));
        }
        let (name, attached) = match word.split_once('=') {
            Some((name, value)) if word.starts_with("--") => (name, Some(value)),
            _ if !word.starts_with("--") && word.len() > 2 => {
                let letters = &word[1..];
                if letters
                    .chars()
                    .all(|letter| SHORT_SWITCHES.contains(letter))
                {
                    continue;
                }
                // `-eA=1`, `-p80:80`; in `-ite A=1` the value is the next word.
                let is_cluster = letters[..letters.len() - 1]
                    .chars()
                    .all(|letter| SHORT_SWITCHES.contains(letter));
                let split = word.char_indices().nth(2).map_or(word.len(), |(at, _)| at);
                if is_cluster {
                    ("-", None)
                } else {
                    (&word[..split], Some(&word[split..]))
                }
            }
            _ => (word, None),
        };
        let is_switch =
            SWITCHES.contains(&name) || name.len() == 2 && SHORT_SWITCHES.contains(&name[1..]);
        let value = match attached {
            Some(value) => Some(value),
            None if is_switch => None,
            None => {
                at += 1;
                argv.get(at - 1).copied()
            }
        };
        if matches!(name, "-e" | "--env") {
            env.extend(value);
        }
    }
    None
}

/// Whether a word names SGLang's server.
pub fn names_sglang(word: &str) -> bool {
    ["sglang.launch_server", "launch_server.py", "sglang serve"]
        .iter()
        .any(|name| word.contains(name))
}

/// Advice on a command that starts something elsewhere.
pub fn advice(tool: &str) -> String {
    match tool.split(' ').next().unwrap_or_default() {
        "docker" | "podman" | "nerdctl" | "docker-compose" | "kubectl" | "singularity"
        | "apptainer" | "enroot" => {
            "gemmtune runs where the server runs: inside the container, `gemmtune init -- COMMAND` with that one \
             (docs/guide/container.md says how to get it in and where things live)"
                .to_owned()
        }
        "srun" | "sbatch" | "mpirun" | "mpiexec" => {
            "gemmtune runs where the server runs: inside the allocation, `gemmtune init -- COMMAND` with the one that the \
             job step runs (docs/guide/slurm.md)"
                .to_owned()
        }
        "ssh" | "pdsh" => {
            "gemmtune runs where the server runs: log in there and run `gemmtune init -- COMMAND` with it".to_owned()
        }
        _ => "let it run once: `gemmtune init -- bash SCRIPT` sees what it starts".to_owned(),
    }
}

/// The kind of a file that describes containers rather than being a script: `compose`, `Kubernetes`.
pub fn manifest(name: &str, text: &str) -> Option<&'static str> {
    let has = |key: &str| {
        text.lines().any(|line| {
            line.trim_start_matches([' ', '-'])
                .strip_prefix(key)
                .is_some_and(|rest| rest.starts_with(':'))
        })
    };
    let is_yaml = matches!(Utf8Path::new(name).extension(), Some("yaml" | "yml"));
    let is_manifest = is_yaml || (has("kind") && has("apiVersion"));
    if !is_manifest {
        return None;
    }
    Some(if has("services") {
        "a compose file"
    } else if has("containers") || has("kind") {
        "a Kubernetes manifest"
    } else {
        "a YAML file"
    })
}

/// Lines of a manifest that name SGLang's server, for a message, including the lines that its options are spread
/// over.
pub fn commands_in(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let plain = line.replace(['"', '\'', ','], " ");
        let spread = plain.split_whitespace().collect::<Vec<_>>().join(" ");
        if !names_sglang(&spread) {
            continue;
        }
        let mut command = spread;
        for more in &lines[at + 1..] {
            let more = more.trim();
            let is_option =
                more.trim_start_matches(['-', ' ', '"', '\'']) != more || command.ends_with('\\');
            if !is_option || more.is_empty() || command.len() > COMMAND_WIDTH {
                break;
            }
            let more = more.strip_prefix("- ").unwrap_or(more);
            command = format!(
                "{} {}",
                command.trim_end_matches('\\').trim_end(),
                more.replace(['"', '\'', ','], " ").trim()
            );
        }
        let words: Vec<&str> = command.split_whitespace().collect();
        let words: Vec<&str> = words
            .iter()
            .skip_while(|word| matches!(**word, "-" | "|" | "[" | "command:" | "args:" | "exec"))
            .copied()
            .collect();
        found.push(cut(&masked(&words).join(" "), COMMAND_WIDTH));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inside_of(tool: &str, line: &str) -> Option<String> {
        let argv: Vec<&str> = line.split_whitespace().collect();
        inside(tool, &argv)
    }

    #[test]
    fn the_command_inside_a_container_is_shown_with_its_variables() {
        let line = "docker run -d --name sglang --device=/dev/kfd -itd -eA=1 -e HF_TOKEN=secret --ipc host -p 30000:30000 \
                    lmsysorg/sglang:v0.5.9 python3 -m sglang.launch_server --tp 1 --api-key k";
        assert_eq!(
            inside_of("docker run", line).unwrap(),
            "in `lmsysorg/sglang:v0.5.9` with A=1 HF_TOKEN=***: python3 -m sglang.launch_server --tp 1 --api-key '***'"
        );
        assert_eq!(
            inside_of(
                "srun",
                "srun -N1 --gpus 8 python3 -m sglang.launch_server --tp 8"
            )
            .unwrap(),
            "python3 -m sglang.launch_server --tp 8"
        );
        assert_eq!(
            inside_of("docker run", "docker run -it --rm rocm/pytorch bash"),
            None
        );
        assert_eq!(inside_of("ssh", "ssh node ls"), None);
    }

    #[test]
    fn the_command_of_a_pod_or_a_compose_file_is_shown() {
        let pod = "spec:\n  containers:\n  - name: s\n    args:\n    - |\n      exec python3 -m sglang.launch_server --tp 8\n    env: []\n";
        assert_eq!(manifest("pod.yaml", pod), Some("a Kubernetes manifest"));
        assert_eq!(commands_in(pod), ["python3 -m sglang.launch_server --tp 8"]);
        let compose = "services:\n  s:\n    command: >\n      python3 -m sglang.launch_server\n      --tp 8\n      --port 1\n    ipc: host\n";
        assert_eq!(manifest("compose.yml", compose), Some("a compose file"));
        assert_eq!(
            commands_in(compose),
            ["python3 -m sglang.launch_server --tp 8 --port 1"]
        );
        assert_eq!(manifest("launch.sh", "#!/bin/bash\nkind=1\n"), None);
    }
}
