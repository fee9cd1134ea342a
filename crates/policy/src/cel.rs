//! Conditions: one CEL expression a rule. What is not known beforehand to be cheap is refused when the policy is read, since it
//! runs within a request: the text is short, its nesting and its number of steps are bounded, and macros walk over lists
//! that are written out. Parsing and evaluating cannot take the process down: panics of the library are caught, and a
//! bounded nesting keeps both from running out of stack, which could not be caught.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, LazyLock};

use cel::common::ast::{Expr, IdedExpr, operators};
use cel::common::types::{CelBool, CelInt, CelNull, CelString};
use cel::common::value::CowVal;
use cel::context::VariableResolver;
use cel::parser::Parser;
use cel::{Context, Env, ExecutionError, Value};

use crate::path::decoded;
use crate::{Operation, Source, Target, Workload};

/// The longest expression, in bytes.
const MAX_LENGTH: usize = 4096;
/// The deepest nesting, of brackets in the text and of the expression itself. People write up to five or so.
const MAX_DEPTH: u32 = 24;
/// The most steps that one evaluation may take, worst case: each operator, name and literal is one, and what a macro repeats
/// counts as often as its list is long. Some 100 ns each.
const MAX_STEPS: u64 = 2000;

/// The functions of CEL's standard library that take and give what there is here.
const FUNCTIONS: [&str; 6] = ["size", "contains", "startsWith", "endsWith", "string", "int"];
const OPERATORS: [&str; 17] = [
    operators::CONDITIONAL,
    operators::LOGICAL_AND,
    operators::LOGICAL_OR,
    operators::LOGICAL_NOT,
    operators::NOT_STRICTLY_FALSE,
    operators::SUBSTRACT,
    operators::ADD,
    operators::MODULO,
    operators::EQUALS,
    operators::NOT_EQUALS,
    operators::GREATER_EQUALS,
    operators::LESS_EQUALS,
    operators::GREATER,
    operators::LESS,
    operators::NEGATE,
    operators::INDEX,
    operators::IN,
];

/// What there is to read, and whether it tells of who asks (as far as that must be verified) or of the path.
const FIELDS: [(&str, &[&str]); 3] = [
    ("source", &["namespace", "pod", "serviceAccount", "node", "identified"]),
    ("request", &["method", "path", "host"]),
    ("target", &["namespace", "pod", "port"]),
];

/// The standard environment, made once: it is the same for all.
static ENVIRONMENT: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib()));

/// A condition that passed every check.
#[derive(Debug)]
pub(crate) struct Condition {
    expression: IdedExpr,
    pub(crate) reads_source: bool,
    pub(crate) reads_path: bool,
}

impl Condition {
    /// Parses and checks a condition.
    ///
    /// # Errors
    /// Why it is refused, in words.
    pub(crate) fn compile(text: &str) -> Result<Self, String> {
        if text.len() > MAX_LENGTH {
            return Err(format!("it has {} bytes; at most {MAX_LENGTH} are read", text.len()));
        }
        check_brackets(text)?;
        let parse = || Parser::new().max_recursion_depth(4 * MAX_DEPTH as u16).parse(text);
        let expression = match catch_unwind(AssertUnwindSafe(parse)) {
            Ok(Ok(expression)) => expression,
            Ok(Err(errors)) => {
                let first = errors.errors.first();
                return Err(first.map_or_else(
                    || "it is no CEL".to_owned(),
                    |error| format!("it is no CEL: {} (line {}, column {})", error.msg, error.pos.0, error.pos.1),
                ));
            }
            Err(_) => return Err("it is no CEL that can be parsed".to_owned()),
        };
        let mut check = Check { locals: Vec::new(), reads_source: false, reads_path: false };
        let steps = check.steps(&expression, MAX_DEPTH)?;
        if steps > MAX_STEPS {
            return Err(format!("it may take {steps} steps; at most {MAX_STEPS} are allowed"));
        }
        let Check { reads_source, reads_path, .. } = check;
        let condition = Self { expression, reads_source, reads_path };
        condition.try_out()?;
        Ok(condition)
    }

    /// Evaluates it.
    ///
    /// # Errors
    /// It has no answer, or one that is neither true nor false.
    pub(crate) fn evaluate(
        &self,
        source: &Source<'_>,
        target: &Target<'_>,
        operation: &Operation<'_>,
    ) -> Result<bool, NoAnswer> {
        let facts = Facts { source, target, operation };
        let evaluate = || {
            let mut context = Context::with_env(Arc::clone(&ENVIRONMENT));
            context.set_variable_resolver(&facts);
            Value::resolve(&self.expression, &context)
        };
        match catch_unwind(AssertUnwindSafe(evaluate)) {
            Ok(Ok(Value::Bool(answer))) => Ok(answer),
            Ok(Ok(_)) => Err(NoAnswer::NotBool),
            Ok(Err(error)) => Err(NoAnswer::Error(error)),
            Err(_) => Err(NoAnswer::Panic),
        }
    }

    /// Wrong types show when it is run, so it is run once over made-up facts. What depends on the facts may fail here as it
    /// may in earnest.
    fn try_out(&self) -> Result<(), String> {
        let workload = Workload { namespace: "shop", pod: "web-0", service_account: "web" };
        let source = Source { node: "node-a", workload: Some(workload), doubtful: false };
        let target = Target { namespace: "shop", pod: "db-0", port: 8080 };
        let operation = Operation::Http { method: "GET", path: "/", host: "db.shop" };
        match self.evaluate(&source, &target, &operation) {
            Err(NoAnswer::NotBool) => Err("it is neither true nor false".to_owned()),
            Err(NoAnswer::Panic) => Err("it cannot be evaluated".to_owned()),
            Err(NoAnswer::Error(
                error @ (ExecutionError::NoSuchOverload(_)
                | ExecutionError::UndeclaredReference(_)
                | ExecutionError::UnexpectedType { .. }
                | ExecutionError::UnsupportedBinaryOperator(..)
                | ExecutionError::ValuesNotComparable(..)
                | ExecutionError::InvalidArgumentCount { .. }),
            )) => Err(format!("its types do not fit: {error}")),
            Ok(_) | Err(NoAnswer::Error(_)) => Ok(()),
        }
    }
}

/// Why an evaluation has no answer.
#[derive(Debug)]
pub(crate) enum NoAnswer {
    NotBool,
    Error(ExecutionError),
    Panic,
}

/// Bounds the nesting before the parser, which calls itself, sees the text.
fn check_brackets(text: &str) -> Result<(), String> {
    let mut depth = 0_u32;
    let mut signs = 0_u32;
    let mut quote = None;
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if let Some(end) = quote {
            match byte {
                b'\\' => drop(bytes.next()),
                byte if byte == end => quote = None,
                _ => {}
            }
            continue;
        }
        match byte {
            b'\'' | b'"' => quote = Some(byte),
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        // `!!!!x`, `a?b:c?d:e`: these nest without a bracket.
        signs += u32::from(matches!(byte, b'!' | b'?'));
        if depth > MAX_DEPTH || signs > 4 * MAX_DEPTH {
            return Err(format!("it is nested deeper than {MAX_DEPTH}"));
        }
    }
    Ok(())
}

/// The walk that bounds the cost and finds what is read.
struct Check<'a> {
    /// The variables of the macros around.
    locals: Vec<&'a str>,
    reads_source: bool,
    reads_path: bool,
}

impl<'a> Check<'a> {
    /// The most steps that an evaluation takes.
    fn steps(&mut self, of: &'a IdedExpr, depth: u32) -> Result<u64, String> {
        let depth = depth.checked_sub(1).ok_or_else(|| format!("it is nested deeper than {MAX_DEPTH}"))?;
        let inner = match &of.expr {
            Expr::Literal(_) => 0,
            Expr::Ident(name) => {
                self.name(name, None)?;
                0
            }
            Expr::Select(select) => match &select.operand.expr {
                Expr::Ident(name) => {
                    self.name(name, Some(&select.field))?;
                    1
                }
                _ => return Err(format!("nothing has a field '{}'", select.field)),
            },
            Expr::Call(call) => {
                let name = call.func_name.as_str();
                if !FUNCTIONS.contains(&name) && !OPERATORS.contains(&name) {
                    return Err(format!("there is no '{name}'; there are {}", FUNCTIONS.join(", ")));
                }
                let mut sum = 0;
                for part in call.target.as_deref().into_iter().chain(&call.args) {
                    sum += self.steps(part, depth)?;
                }
                sum
            }
            Expr::List(list) => {
                let mut sum = 0;
                for element in &list.elements {
                    sum += self.steps(element, depth)?;
                }
                sum
            }
            Expr::Comprehension(walk) => {
                let Expr::List(list) = &walk.iter_range.expr else {
                    return Err("a macro walks over something else than a list that is written out".to_owned());
                };
                let length = u64::try_from(list.elements.len()).unwrap_or(u64::MAX);
                let before = self.steps(&walk.iter_range, depth)? + self.steps(&walk.accu_init, depth)?;
                let outer = self.locals.len();
                self.locals.push(&walk.accu_var);
                let after = self.steps(&walk.result, depth)?;
                self.locals.push(&walk.iter_var);
                self.locals.extend(walk.iter_var2.as_deref());
                let each = self.steps(&walk.loop_cond, depth)? + self.steps(&walk.loop_step, depth)?;
                self.locals.truncate(outer);
                // Up to 2^12 elements, each as many steps, and no deeper than 24: no overflow is near, but saturate.
                before.saturating_add(after).saturating_add(length.saturating_mul(each))
            }
            Expr::Map(_) | Expr::Struct(_) => return Err("it makes a map or a message".to_owned()),
            Expr::Unspecified => return Err("it is empty".to_owned()),
        };
        Ok(inner.saturating_add(1).min(u64::from(u32::MAX)))
    }

    fn name(&mut self, name: &str, field: Option<&str>) -> Result<(), String> {
        if self.locals.contains(&name) {
            return match field {
                Some(field) => Err(format!("'{name}' has no field '{field}'")),
                None => Ok(()),
            };
        }
        let Some((_, fields)) = FIELDS.iter().find(|(known, _)| *known == name) else {
            return Err(format!("there is no '{name}'; there are source, request and target"));
        };
        match (name, field) {
            (_, Some(field)) if !fields.contains(&field) => {
                return Err(format!("'{name}' has no field '{field}'; it has {}", fields.join(", ")));
            }
            // `request == null` says whether it is a tunnel.
            ("request", None) => {}
            (_, None) => return Err(format!("'{name}' is read as a whole; name one of {}", fields.join(", "))),
            ("source", Some(field)) => self.reads_source |= field != "node",
            ("request", Some(field)) => self.reads_path |= field == "path",
            _ => {}
        }
        Ok(())
    }
}

/// What is known of one request, looked up by name when the expression asks for it.
struct Facts<'a> {
    source: &'a Source<'a>,
    target: &'a Target<'a>,
    operation: &'a Operation<'a>,
}

impl VariableResolver for Facts<'_> {
    fn resolve<'b>(&'b self, variable: &str) -> Option<CowVal<'b, 'b>> {
        fn text<'b>(text: &'b str) -> Option<CowVal<'b, 'b>> {
            Some(CowVal::owned(CelString::from(text)))
        }
        let workload = self.source.workload.as_ref();
        let of = |part: fn(&Workload<'b>) -> &'b str| text(workload.map_or("", part));
        match (variable, self.operation) {
            ("source.namespace", _) => of(|workload| workload.namespace),
            ("source.pod", _) => of(|workload| workload.pod),
            ("source.serviceAccount", _) => of(|workload| workload.service_account),
            ("source.node", _) => text(self.source.node),
            ("source.identified", _) => Some(CowVal::owned(CelBool::from(workload.is_some()))),
            ("target.namespace", _) => text(self.target.namespace),
            ("target.pod", _) => text(self.target.pod),
            ("target.port", _) => Some(CowVal::owned(CelInt::from(i64::from(self.target.port)))),
            ("request.method", Operation::Http { method, .. }) => text(method),
            ("request.path", Operation::Http { path, .. }) => Some(match decoded(path) {
                std::borrow::Cow::Borrowed(path) => CowVal::owned(CelString::from(path)),
                std::borrow::Cow::Owned(path) => CowVal::owned(CelString::from(path)),
            }),
            ("request.host", Operation::Http { host, .. }) => text(host),
            ("request", Operation::Tunnel) => Some(CowVal::owned(CelNull)),
            // Only ever compared with null.
            ("request", Operation::Http { .. }) => Some(CowVal::owned(CelBool::from(true))),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn source() -> Source<'static> {
        let workload = Workload { namespace: "shop", pod: "web-0", service_account: "web" };
        Source { node: "node-a", workload: Some(workload), doubtful: false }
    }

    const TARGET: Target<'static> = Target { namespace: "shop", pod: "db-0", port: 5432 };
    const GET: Operation<'static> = Operation::Http { method: "GET", path: "/a%20b", host: "db.shop" };

    fn refused(text: &str) -> String {
        match Condition::compile(text) {
            Ok(_) => panic!("{text} is taken"),
            Err(why) => why,
        }
    }

    #[test]
    fn every_fact_is_read() {
        for text in [
            "source.namespace == 'shop' && source.pod == 'web-0' && source.serviceAccount == \"web\"",
            "source.identified && source.node.startsWith('node-')",
            "request.method == 'GET' && request.path == '/a b' && request.host.endsWith('.shop')",
            "target.namespace == source.namespace && target.pod == 'db-0' && target.port == 5432",
            "request != null && !(request == null)",
            "request.method in ['GET', 'HEAD']",
            "['/a', '/b'].exists(p, request.path.startsWith(p))",
            "!['/x', '/y'].all(p, request.path.startsWith(p))",
            "size(request.path) == 4 && request.path.size() < 5 && request.path.contains(' ')",
            "target.port > 1024 ? request.method == 'GET' : false",
            "string(target.port) == '5432' && int('7') == 7",
            "source.pod == source.serviceAccount + '-' + string(0)",
        ] {
            let condition = Condition::compile(text).unwrap_or_else(|why| panic!("{text}: {why}"));
            assert!(matches!(condition.evaluate(&source(), &TARGET, &GET), Ok(true)), "{text}");
        }
    }

    #[test]
    fn a_tunnel_has_no_request() {
        let on_tunnel = |text: &str| Condition::compile(text).unwrap().evaluate(&source(), &TARGET, &Operation::Tunnel);
        assert!(matches!(on_tunnel("request == null"), Ok(true)));
        assert!(matches!(on_tunnel("request == null || request.method == 'GET'"), Ok(true)));
        assert!(on_tunnel("request.method == 'GET'").is_err());
        assert!(on_tunnel("request.path.startsWith('/')").is_err());
    }

    #[test]
    fn what_must_be_known_beforehand_is_told() {
        let reads = |text: &str| {
            let condition = Condition::compile(text).unwrap();
            (condition.reads_source, condition.reads_path)
        };
        assert_eq!(reads("source.pod == 'a'"), (true, false));
        assert_eq!(reads("source.identified"), (true, false));
        assert_eq!(reads("source.node == 'a' && target.port == 80"), (false, false));
        assert_eq!(reads("request.path == '/'"), (false, true));
        assert_eq!(reads("request != null && request.method == 'GET'"), (false, false));
    }

    #[test]
    fn what_is_wrong_or_could_be_dear_is_refused() {
        for (text, why) in [
            ("", "CEL"),
            ("source.pod ==", "CEL"),
            ("source.pod = 'a'", "CEL"),
            ("'abc", "CEL"),
            ("source.uid == 'a'", "no field 'uid'"),
            ("source.pod.name == 'a'", "has a field 'name'"),
            ("sorce.pod == 'a'", "no 'sorce'"),
            (".source.pod == 'a'", "no '.source'"),
            ("source == target", "as a whole"),
            ("request.path.matches('a*')", "no 'matches'"),
            ("foo(source.pod)", "no 'foo'"),
            ("'a'", "neither"),
            ("target.port", "neither"),
            ("target.port == 'a' + 1", "types"),
            ("source.pod.startsWith(1)", "types"),
            ("{'a': 1}['a'] == 1", "map"),
            ("source.exists(x, x == 'a')", "written out"),
            ("['a'].map(x, x + x).exists(x, x == 'aa')", "written out"),
        ] {
            let said = refused(text);
            assert!(said.contains(why), "{text:?}: {said}");
        }
        assert!(refused(&format!("'{}' == source.pod", "x".repeat(MAX_LENGTH))).contains("bytes"));
        assert!(refused(&format!("{}true{}", "(".repeat(100), ")".repeat(100))).contains("nested"));
        assert!(refused(&format!("{}true", "!".repeat(1000))).contains("nested"));
        assert!(refused(&format!("1{} == 1", "+1".repeat(500))).contains("nested"));
        assert!(refused(&format!("{}true", "true ? true : ".repeat(200))).contains("nested"));
        let list = format!("[{}]", ["1"; 100].join(","));
        let nested = format!("{list}.all(a, {list}.all(b, a == b))");
        assert!(refused(&nested).contains("steps"), "{}", refused(&nested));
    }

    #[test]
    fn the_deepest_and_the_longest_that_are_taken_fit_a_small_stack() {
        let texts = [
            format!("{}true{}", "(".repeat(20), ")".repeat(20)),
            format!("{}true", "!".repeat(22)),
            format!("{}1 == 1", "-".repeat(4000)),
            format!("1{} == 1", "+1".repeat(20)),
            vec!["source.pod == 'a'"; 180].join(" || "),
            format!("request.method in [{}]", ["'A'"; 500].join(",")),
        ];
        // Workers have 2 MiB; so little shows that there is room.
        let small = std::thread::Builder::new().stack_size(512 << 10).spawn(move || {
            for text in texts {
                let condition = Condition::compile(&text).unwrap_or_else(|why| panic!("{text}: {why}"));
                condition.evaluate(&source(), &TARGET, &GET).unwrap();
            }
        });
        small.unwrap().join().unwrap();
    }

    #[test]
    fn what_has_no_answer_says_so() {
        let condition = Condition::compile("source.pod == 'web-0' || 10 % (target.port - 8080) == 1").unwrap();
        assert!(matches!(condition.evaluate(&source(), &TARGET, &GET), Ok(true)));
        let condition = Condition::compile("10 % (target.port - 5432) == 1").unwrap();
        assert!(matches!(condition.evaluate(&source(), &TARGET, &GET), Err(NoAnswer::Error(_))));
    }

    fn any_text() -> impl Strategy<Value = String> {
        let pieces = [
            "source",
            ".pod",
            "request",
            ".path",
            "(",
            ")",
            "[",
            "]",
            "{",
            "}",
            "!",
            "-",
            "?",
            ":",
            " && ",
            " || ",
            "==",
            "+",
            "'a'",
            "\"",
            "'",
            "\\",
            "1",
            "9999999999999999999999",
            "1e400",
            "0x",
            ",",
            ".exists(x, ",
            ".all(",
            "has(",
            " in ",
            "null",
            "true",
            "r'",
            "b'",
            "'''",
            "\n",
            "//",
            "é",
            "\u{0}",
            "`",
            "@",
            "size(",
            "int(",
            "string(",
        ];
        prop::collection::vec(prop::sample::select(pieces.to_vec()), 0..24).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn no_text_takes_the_process_down(text in any_text()) {
            if let Ok(condition) = Condition::compile(&text) {
                let _ = condition.evaluate(&source(), &TARGET, &Operation::Tunnel);
            }
        }
    }
}
