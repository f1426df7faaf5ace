//! A client of OpenAI-compatible endpoints that notes when each token of a stream arrives.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};

/// An endpoint.
#[derive(Clone, Debug)]
pub struct Endpoint {
    agent: ureq::Agent,
    base: String,
    model: String,
    key: Option<String>,
}

/// One request of a drive.
#[derive(Clone, Copy, Debug)]
pub struct Prompt {
    /// Tells prompts apart from their first word on, so that no cache of prefixes holds them.
    pub number: u64,
    /// Words of the prompt, roughly its tokens.
    pub words: u32,
    /// Tokens to generate.
    pub max_tokens: u32,
}

/// When each piece of the answer arrived.
pub type Arrivals = Vec<Instant>;

impl Endpoint {
    /// The endpoint at `base` (`http://host:port` or `…/v1`), serving `model`; its first model
    /// when `None`.
    ///
    /// # Errors
    /// One line that says what was asked and what came back.
    pub fn open(
        base: &str,
        model: Option<&str>,
        key: Option<String>,
        limit: Duration,
    ) -> Result<Endpoint, String> {
        if base.starts_with("https://") {
            return Err(format!(
                "{base}: TLS would be timed too; give the engine's own http:// address"
            ));
        }
        let base = base.trim_end_matches('/');
        let base = base.strip_suffix("/v1").unwrap_or(base).to_owned();
        // As many connections as there are requests at a time are kept open.
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(limit))
            .http_status_as_error(false)
            .max_idle_connections(1024)
            .max_idle_connections_per_host(1024);
        let agent: ureq::Agent = config.build().into();
        let mut endpoint = Endpoint { agent, base, model: String::new(), key };
        let list = endpoint.get("/v1/models")?;
        let served: Vec<&str> = list["data"]
            .as_array()
            .map_or(Vec::new(), |data| data.iter().filter_map(|m| m["id"].as_str()).collect());
        endpoint.model = match (model, served.as_slice()) {
            (Some(model), served) if served.contains(&model) || served.is_empty() => {
                model.to_owned()
            }
            (Some(model), served) => {
                return Err(format!(
                    "{} serves {}, not {model}; give --served-model",
                    endpoint.base,
                    served.join(", ")
                ));
            }
            (None, [first, ..]) => (*first).to_owned(),
            (None, []) => {
                return Err(format!(
                    "{}/v1/models lists no model; give --served-model",
                    endpoint.base
                ));
            }
        };
        Ok(endpoint)
    }

    /// The model that is asked for.
    pub fn model(&self) -> &str {
        &self.model
    }

    fn authorised<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        match &self.key {
            Some(key) => request.header("authorization", format!("Bearer {key}")),
            None => request,
        }
    }

    fn get(&self, path: &str) -> Result<Value, String> {
        let url = format!("{}{path}", self.base);
        let mut response =
            self.authorised(self.agent.get(&url)).call().map_err(|e| format!("{url}: {e}"))?;
        let text = response.body_mut().read_to_string().map_err(|e| format!("{url}: {e}"))?;
        if !response.status().is_success() {
            return Err(format!("{url}: {}: {}", response.status(), start_of(&text)));
        }
        serde_json::from_str(&text).map_err(|_| format!("{url}: no JSON: {}", start_of(&text)))
    }

    /// Milliseconds of one question that costs the engine nothing, there and back: transport.
    ///
    /// # Errors
    /// As [`Endpoint::open`].
    pub fn round_trip_ms(&self) -> Result<f64, String> {
        let begin = Instant::now();
        self.get("/v1/models")?;
        Ok(begin.elapsed().as_secs_f64() * 1e3)
    }

    /// Asks for one completion and notes when its pieces arrive.
    ///
    /// # Errors
    /// One line.
    pub fn stream(&self, prompt: Prompt) -> Result<Arrivals, String> {
        let url = format!("{}/v1/completions", self.base);
        let words = vec!["one"; prompt.words.max(1) as usize].join(" ");
        let body = json!({
            "model": self.model,
            "prompt": format!("{} {words}", prompt.number),
            "max_tokens": prompt.max_tokens,
            "min_tokens": prompt.max_tokens,
            "ignore_eos": true,
            "temperature": 0.0,
            "stream": true,
        });
        let request =
            self.authorised(self.agent.post(&url)).header("content-type", "application/json");
        let mut response = request.send(body.to_string()).map_err(|e| format!("{url}: {e}"))?;
        if !response.status().is_success() {
            let text = response.body_mut().read_to_string().unwrap_or_default();
            return Err(format!("{url}: {}: {}", response.status(), start_of(&text)));
        }
        let mut arrivals = Vec::with_capacity(prompt.max_tokens as usize);
        let mut reader = BufReader::new(response.into_body().into_reader());
        let mut line = String::new();
        loop {
            line.clear();
            let n = reader
                .read_line(&mut line)
                .map_err(|e| format!("{url}: the stream broke off: {e}"))?;
            let now = Instant::now();
            if n == 0 {
                break;
            }
            match event(&line).map_err(|e| format!("{url}: {e}"))? {
                StreamEvent::Token => arrivals.push(now),
                StreamEvent::End => break,
                StreamEvent::Other => {}
            }
        }
        Ok(arrivals)
    }
}

/// What a line of a stream says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamEvent {
    /// Something was generated.
    Token,
    /// That was all.
    End,
    /// Nothing of ours.
    Other,
}

/// Reads a line of a stream of server-sent events.
///
/// # Errors
/// One line: the engine reports an error, or an event is no JSON.
pub fn event(line: &str) -> Result<StreamEvent, String> {
    let Some(data) = line.trim_end().strip_prefix("data:").map(str::trim) else {
        return Ok(StreamEvent::Other);
    };
    if data == "[DONE]" {
        return Ok(StreamEvent::End);
    }
    let event: Value = serde_json::from_str(data)
        .map_err(|_| format!("an event that is no JSON: {}", start_of(data)))?;
    if let Some(error) = event.get("error").filter(|e| !e.is_null()) {
        return Err(start_of(&error.to_string()));
    }
    // The last event may carry the use of tokens and no choice.
    let token = event["choices"].as_array().is_some_and(|choices| !choices.is_empty());
    Ok(if token { StreamEvent::Token } else { StreamEvent::Other })
}

fn start_of(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(160).collect()
}
