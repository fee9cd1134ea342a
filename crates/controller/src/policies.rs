//! Tells people in each AuthorizationPolicy's status whether it can be used. Nothing depends on that: every proxy reads the
//! policies itself and comes to the same answer. They are watched without their types, since one that does not fit them is
//! just the one of which something has to be said.

use std::sync::Arc;

use futures_util::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::core::{ApiResource, DynamicObject};
use kube::runtime::controller::{Action, Config, Controller};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use posthouse_model::chain;
use posthouse_policy::{AuthorizationPolicy, Policy};
use serde_json::{Value, json};

use crate::{Settings, metrics};

/// Policies whose status is written at the same time. A restart with thousands of them is no emergency.
const CONCURRENT: u16 = 4;
const ACCEPTED: &str = "Accepted";

struct Context {
    client: Client,
    resource: ApiResource,
    settings: Arc<Settings>,
}

/// Writes for ever; dropping it stops at once.
pub(crate) async fn run(client: &Client, settings: Arc<Settings>) {
    let resource = ApiResource::erase::<AuthorizationPolicy>(&());
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let context = Arc::new(Context { client: client.clone(), resource: resource.clone(), settings });
    let written = Controller::new_with(api, watcher::Config::default(), resource)
        .with_config(Config::default().concurrency(CONCURRENT))
        .run(write, |policy, error, context| again(&policy, error, &context), context);
    let mut written = std::pin::pin!(written);
    let mut failed = None;
    while let Some(outcome) = written.next().await {
        match outcome {
            Ok(_) => failed = None,
            Err(
                kube::runtime::controller::Error::ReconcilerFailed(..)
                | kube::runtime::controller::Error::ObjectNotFound(_),
            ) => {}
            Err(error) => {
                // Where the definition is not installed, this is asked again and again: said once.
                let error = chain(&error);
                if failed.as_ref() != Some(&error) {
                    tracing::warn!(error, "policies cannot be watched, their status is not written");
                }
                failed = Some(error);
            }
        }
    }
}

fn again(policy: &DynamicObject, error: &kube::Error, context: &Context) -> Action {
    let raced = matches!(error, kube::Error::Api(status) if status.code == 409 || status.code == 404);
    if !raced {
        ::metrics::counter!(metrics::FAILURES, "task" => "policy").increment(1);
        tracing::warn!(policy = policy.name_any(), error = chain(error), "a policy's status cannot be written yet");
    }
    Action::requeue(context.settings.timing.retry.mul_f64(1.0 + fastrand::f64()))
}

async fn write(policy: Arc<DynamicObject>, context: Arc<Context>) -> Result<Action, kube::Error> {
    let Some(namespace) = policy.namespace() else {
        return Ok(Action::await_change());
    };
    let Some(changed) = with_condition(&policy, &namespace) else {
        return Ok(Action::await_change());
    };
    let api: Api<DynamicObject> = Api::namespaced_with(context.client.clone(), &namespace, &context.resource);
    api.replace_status(&policy.name_any(), &PostParams::default(), &changed).await?;
    Ok(Action::await_change())
}

/// The policy with the condition that it should have; none if it has that already.
fn with_condition(policy: &DynamicObject, namespace: &str) -> Option<DynamicObject> {
    let read = Policy::read(namespace, &policy.name_any(), policy.data.get("spec").unwrap_or(&Value::Null));
    let (status, reason, message) = match read.problem() {
        None => ("True", "Accepted", "every proxy enforces it".to_owned()),
        Some(problem) => {
            let message = format!("{problem}; until it is mended every request to its targets is denied");
            ("False", problem.reason(), message)
        }
    };
    let mut conditions: Vec<Value> = policy.data["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let known = conditions.iter().position(|condition| condition["type"] == ACCEPTED);
    let before = known.map(|at| conditions.remove(at)).unwrap_or_default();
    let generation = policy.metadata.generation;
    let same = before["status"] == status;
    if same
        && before["reason"] == reason
        && before["message"] == message
        && before["observedGeneration"] == json!(generation)
    {
        return None;
    }
    // The time is that of the last change of the status, not of the words (metav1.Condition).
    let since = before["lastTransitionTime"].as_str().filter(|_| same).and_then(|time| time.parse().ok());
    let condition = Condition {
        type_: ACCEPTED.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message,
        observed_generation: generation,
        last_transition_time: Time(since.unwrap_or_else(Timestamp::now)),
    };
    conditions.push(json!(condition));
    let mut changed = policy.clone();
    changed.data["status"] = json!({ "conditions": conditions });
    Some(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(spec: &Value, status: &Value) -> DynamicObject {
        let object = json!({
            "apiVersion": "posthouse.io/v1alpha1", "kind": "AuthorizationPolicy",
            "metadata": {"name": "web", "namespace": "shop", "generation": 3},
            "spec": spec, "status": status,
        });
        serde_json::from_value(object).unwrap()
    }

    fn accepted(policy: &DynamicObject) -> Value {
        let conditions = policy.data["status"]["conditions"].as_array().unwrap();
        conditions.iter().find(|condition| condition["type"] == "Accepted").unwrap().clone()
    }

    #[test]
    fn a_good_policy_is_accepted_and_a_bad_one_says_what_is_wrong() {
        let good = with_condition(&policy(&json!({"action": "Allow"}), &Value::Null), "shop").unwrap();
        let condition = accepted(&good);
        assert_eq!((&condition["status"], &condition["observedGeneration"]), (&json!("True"), &json!(3)));
        assert_eq!(with_condition(&good, "shop"), None, "what is written is not written again");

        for spec in [json!({"action": "Permit"}), json!({"action": "Deny", "rulez": []}), json!(7), Value::Null] {
            let bad = with_condition(&policy(&spec, &Value::Null), "shop").unwrap();
            let condition = accepted(&bad);
            assert_eq!(condition["status"], "False", "{spec}");
            assert!(condition["message"].as_str().unwrap().contains("is denied"), "{condition}");
            assert_eq!(with_condition(&bad, "shop"), None);
        }
    }

    #[test]
    fn others_conditions_stay_and_the_time_is_that_of_the_last_turn() {
        let old = "2020-01-02T03:04:05Z";
        let status = json!({"conditions": [
            {"type": "Accepted", "status": "True", "reason": "Accepted", "message": "x", "observedGeneration": 1, "lastTransitionTime": old},
            {"type": "Else", "status": "True", "reason": "Other", "message": "", "lastTransitionTime": old},
        ]});
        let good = with_condition(&policy(&json!({"action": "Allow"}), &status), "shop").unwrap();
        assert_eq!(accepted(&good)["lastTransitionTime"], old);
        assert_eq!(good.data["status"]["conditions"].as_array().unwrap().len(), 2);
        let bad = with_condition(&policy(&json!({"action": "Permit"}), &status), "shop").unwrap();
        assert_ne!(accepted(&bad)["lastTransitionTime"], old);
    }
}
