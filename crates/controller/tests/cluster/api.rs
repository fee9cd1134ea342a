//! An API server in the process: objects with versions, list, watch, create, replace, the subresources of certificate requests,
//! and RBAC: whoever asks for what the list of permissions does not have gets 403 and fails the test.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use http::{Method, Request, Response};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use kube::Client;
use kube::client::Body;
use posthouse_model::issuance::{Grant, Scope};
use serde_json::{Value, json};
use tokio::sync::mpsc;

pub(crate) const NAMESPACE: &str = "posthouse";

/// Who asks, as the API server knows it.
#[derive(Clone)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) node: Option<String>,
    pub(crate) grants: &'static [Grant],
}

#[derive(Clone, Default)]
pub(crate) struct Api(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    version: u64,
    /// By path.
    objects: BTreeMap<String, (u64, Value)>,
    watches: Vec<Watch>,
    forbidden: Vec<String>,
    requests: Vec<(String, String)>,
}

struct Watch {
    collection: String,
    fields: Option<String>,
    to: mpsc::UnboundedSender<String>,
}

type AnyBody = UnsyncBoxBody<Bytes, Infallible>;

/// A path's parts.
struct Place {
    group: String,
    namespaced: bool,
    resource: String,
    collection: String,
    name: Option<String>,
    subresource: Option<String>,
}

impl Place {
    fn of(path: &str) -> Self {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let (group, rest) = match parts[0] {
            "api" => (String::new(), 2),
            _ => (parts[1].to_owned(), 3),
        };
        let (namespaced, at) = match parts[rest] {
            "namespaces" => {
                assert_eq!(parts[rest + 1], NAMESPACE, "nobody has business in another namespace: {path}");
                (true, rest + 2)
            }
            _ => (false, rest),
        };
        // One collection, whichever way it is asked for.
        let collection = match parts[at] {
            "authorizationpolicies" => "/apis/posthouse.io/v1alpha1/authorizationpolicies".to_owned(),
            _ => format!("/{}", parts[..=at].join("/")),
        };
        let get = |index: usize| parts.get(index).map(|part| (*part).to_owned());
        Self {
            group,
            namespaced,
            resource: parts[at].to_owned(),
            collection,
            name: get(at + 1),
            subresource: get(at + 2),
        }
    }

    fn key(&self) -> String {
        format!("{}/{}", self.collection, self.name.as_deref().unwrap_or_default())
    }
}

impl Api {
    /// A client of `user`. While `cut` is set, nothing gets an answer.
    pub(crate) fn client(&self, user: User, cut: Arc<AtomicBool>) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let (api, user, cut) = (api.clone(), user.clone(), Arc::clone(&cut));
            async move {
                if cut.load(Ordering::SeqCst) {
                    return Err(std::io::Error::from(std::io::ErrorKind::ConnectionRefused));
                }
                let (head, body) = request.into_parts();
                let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
                Ok::<_, std::io::Error>(api.answer(&user, &head, &body))
            }
        });
        Client::new(service, NAMESPACE)
    }

    /// What was asked for that nobody may.
    pub(crate) fn forbidden(&self) -> Vec<String> {
        self.0.lock().unwrap().forbidden.clone()
    }

    /// Who replaced `path` so far, in order.
    pub(crate) fn writers(&self, path: &str) -> Vec<String> {
        let state = self.0.lock().unwrap();
        state.requests.iter().filter(|(of, _)| of == path).map(|(_, user)| user.clone()).collect()
    }

    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        self.0.lock().unwrap().objects.get(path).map(|(_, object)| object.clone())
    }

    pub(crate) fn list(&self, collection: &str) -> Vec<Value> {
        let state = self.0.lock().unwrap();
        let prefix = format!("{collection}/");
        state.objects.iter().filter(|(path, _)| path.starts_with(&prefix)).map(|(_, (_, o))| o.clone()).collect()
    }

    /// Puts an object there, past all rules.
    pub(crate) fn put(&self, collection: &str, mut object: Value) {
        let mut state = self.0.lock().unwrap();
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let known = state.objects.contains_key(&format!("{collection}/{name}"));
        state.store(collection, &name, &mut object, if known { "MODIFIED" } else { "ADDED" });
    }

    pub(crate) fn delete(&self, collection: &str, name: &str) {
        let mut state = self.0.lock().unwrap();
        if let Some((_, object)) = state.objects.remove(&format!("{collection}/{name}")) {
            state.version += 1;
            state.tell(collection, "DELETED", &object);
        }
    }

    fn answer(&self, user: &User, head: &http::request::Parts, body: &[u8]) -> Response<AnyBody> {
        let place = Place::of(head.uri.path());
        let query: HashMap<String, String> = form(head.uri.query().unwrap_or_default());
        let watch = query.get("watch").is_some_and(|value| value == "true");
        let verb = match (&head.method, watch, &place.name) {
            (&Method::GET, true, _) => "watch",
            (&Method::GET, false, None) => "list",
            (&Method::GET, false, Some(_)) => "get",
            (&Method::POST, ..) => "create",
            (&Method::PUT, ..) => "update",
            (&Method::DELETE, ..) => "delete",
            _ => "patch",
        };
        let fields = query.get("fieldSelector").cloned();
        let mut state = self.0.lock().unwrap();
        if !allowed(user, &place, verb, fields.as_deref()) {
            let what = format!("{} may not {verb} {}", user.name, head.uri);
            state.forbidden.push(what.clone());
            return failure(403, &what);
        }
        if verb != "get" && verb != "list" && verb != "watch" {
            state.requests.push((head.uri.path().to_owned(), user.name.clone()));
        }
        match verb {
            "watch" => state.watch(&place, fields, query["resourceVersion"].parse().unwrap()),
            "list" => {
                let chosen = state.objects.iter().filter(|(path, (_, object))| {
                    path.starts_with(&format!("{}/", place.collection))
                        && selected(fields.as_deref(), object)
                        && labelled(query.get("labelSelector").map(String::as_str), object)
                });
                let items: Vec<Value> = chosen.map(|(_, (_, object))| object.clone()).collect();
                let version = state.version.to_string();
                answer(
                    200,
                    &json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": version}, "items": items}),
                )
            }
            "get" => match state.objects.get(&place.key()) {
                Some((_, object)) => answer(200, object),
                None => failure(404, "not found"),
            },
            "create" => state.create(user, &place, serde_json::from_slice(body).unwrap()),
            "update" => state.update(user, &place, serde_json::from_slice(body).unwrap()),
            other => failure(405, other),
        }
    }
}

impl State {
    fn store(&mut self, collection: &str, name: &str, object: &mut Value, event: &str) {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.objects.insert(format!("{collection}/{name}"), (self.version, object.clone()));
        self.tell(collection, event, object);
    }

    fn tell(&mut self, collection: &str, event: &str, object: &Value) {
        self.watches.retain(|watch| !watch.to.is_closed());
        for watch in self.watches.iter().filter(|watch| watch.collection == collection) {
            if selected(watch.fields.as_deref(), object) {
                let _ = watch.to.send(line(event, object));
            }
        }
    }

    fn watch(&mut self, place: &Place, fields: Option<String>, version: u64) -> Response<AnyBody> {
        let (to, events) = mpsc::unbounded_channel();
        for (path, (changed, object)) in &self.objects {
            if path.starts_with(&format!("{}/", place.collection))
                && *changed > version
                && selected(fields.as_deref(), object)
            {
                let _ = to.send(line("MODIFIED", object));
            }
        }
        self.watches.push(Watch { collection: place.collection.clone(), fields, to });
        let lines: BoxStream<'static, _> = stream::unfold(events, |mut events| async move {
            events.recv().await.map(|line| (Ok::<_, Infallible>(Frame::data(Bytes::from(line))), events))
        })
        .boxed();
        Response::new(StreamBody::new(lines).boxed_unsync())
    }

    fn create(&mut self, user: &User, place: &Place, mut object: Value) -> Response<AnyBody> {
        let metadata = &mut object["metadata"];
        if metadata["name"].is_null() {
            let prefix = metadata["generateName"].as_str().unwrap().to_owned();
            metadata["name"] = format!("{prefix}{:05}", self.version).into();
        }
        let name = metadata["name"].as_str().unwrap().to_owned();
        metadata["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
        metadata["uid"] = format!("uid-{}", self.version).into();
        if self.objects.contains_key(&format!("{}/{name}", place.collection)) {
            return failure(409, "exists already");
        }
        if place.resource == "certificatesigningrequests" {
            assert!(object["status"].is_null() || object["status"] == json!({}));
            object["spec"]["username"] = user.name.clone().into();
            if let Some(node) = &user.node {
                object["spec"]["extra"] = json!({"authentication.kubernetes.io/node-name": [node]});
            }
        }
        self.store(&place.collection, &name, &mut object, "ADDED");
        answer(201, &object)
    }

    fn update(&mut self, user: &User, place: &Place, mut object: Value) -> Response<AnyBody> {
        let Some((_, known)) = self.objects.get(&place.key()).cloned() else {
            return failure(404, "not found");
        };
        let version = &object["metadata"]["resourceVersion"];
        if !version.is_null() && *version != known["metadata"]["resourceVersion"] {
            return failure(409, "the object has been modified");
        }
        let decided = |object: &Value| -> Vec<Value> {
            let all = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
            all.into_iter().filter(|c| c["type"] == "Approved" || c["type"] == "Denied").collect()
        };
        if place.resource != "certificatesigningrequests" && place.subresource.is_some() {
            let mut kept = known;
            kept["status"] = object["status"].clone();
            object = kept;
        } else if let Some(subresource) = &place.subresource {
            let verb = if subresource == "approval" { "approve" } else { "sign" };
            let signer = known["spec"]["signerName"].as_str().unwrap();
            let grants = user.grants.iter();
            if !grants.clone().any(|g| g.resource == "signers" && g.names.contains(&signer) && g.verbs.contains(&verb))
            {
                self.forbidden.push(format!("{} may not {verb} for {signer}", user.name));
                return failure(403, "not this signer");
            }
            let mut kept = known.clone();
            kept["status"] = object["status"].clone();
            match subresource.as_str() {
                "approval" => {
                    assert!(decided(&object).len() <= 1, "approved and denied at once");
                    kept["status"]["certificate"] = known["status"]["certificate"].clone();
                }
                "status" if decided(&object) != decided(&known) => {
                    return failure(422, "approval has its own subresource");
                }
                _ => {}
            }
            object = kept;
        } else if !known["status"].is_null() {
            object["status"] = known["status"].clone();
        }
        let name = place.name.clone().unwrap();
        self.store(&place.collection, &name, &mut object, "MODIFIED");
        answer(200, &object)
    }
}

/// RBAC. A list or a watch of one name by field selector counts as that name.
fn allowed(user: &User, place: &Place, verb: &str, fields: Option<&str>) -> bool {
    let resource = match &place.subresource {
        Some(subresource) => format!("{}/{subresource}", place.resource),
        None => place.resource.clone(),
    };
    let name = place.name.as_deref().or_else(|| fields.and_then(|fields| fields.strip_prefix("metadata.name=")));
    user.grants.iter().any(|grant| {
        grant.group == place.group
            && grant.resource == resource
            && grant.verbs.contains(&verb)
            && (grant.names.is_empty() || name.is_some_and(|name| grant.names.contains(&name)))
            && (grant.scope == Scope::Cluster || place.namespaced)
    })
}

fn selected(fields: Option<&str>, object: &Value) -> bool {
    let Some((field, wanted)) = fields.and_then(|fields| fields.split_once('=')) else { return true };
    let pointer = format!("/{}", field.replace('.', "/"));
    object.pointer(&pointer).and_then(Value::as_str) == Some(wanted)
}

fn labelled(labels: Option<&str>, object: &Value) -> bool {
    let Some((label, wanted)) = labels.and_then(|labels| labels.split_once('=')) else { return true };
    object["metadata"]["labels"][label] == wanted
}

fn form(query: &str) -> HashMap<String, String> {
    let decode = |text: &str| text.replace("%3D", "=").replace("%2F", "/");
    query.split('&').filter_map(|pair| pair.split_once('=')).map(|(k, v)| (k.to_owned(), decode(v))).collect()
}

fn line(event: &str, object: &Value) -> String {
    format!("{}\n", json!({"type": event, "object": object}))
}

fn failure(code: u16, message: &str) -> Response<AnyBody> {
    let reason = match code {
        403 => "Forbidden",
        404 => "NotFound",
        409 => "Conflict",
        _ => "Invalid",
    };
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "reason": reason, "code": code,
    });
    answer(code, &status)
}

fn answer(code: u16, object: &Value) -> Response<AnyBody> {
    let body = Full::new(Bytes::from(object.to_string())).boxed_unsync();
    Response::builder().status(code).body(body).unwrap()
}
