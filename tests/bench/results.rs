//! The record of a run, `benchmarks.json`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::Failure;
use crate::catalogue::Unit;
use crate::rounds::Outcome;
use crate::stats::{Summary, rounded};

/// Version of the file format.
const FORMAT: u64 = 1;

/// The figures of one subject of one case, at one value if the case is a series.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Measurement {
    /// `GROUP/CASE`, or `GROUP/CASE/VMM`.
    pub(crate) case: String,
    pub(crate) subject: String,
    /// The value of a series: how many clients, how many bytes.
    pub(crate) x: Option<f64>,
    pub(crate) unit: Unit,
    pub(crate) summary: Summary,
}

/// Everything that a run measured.
#[derive(Debug, Clone, Default)]
pub(crate) struct Results {
    /// About the machine, the programs and the run, for the report.
    pub(crate) facts: BTreeMap<String, String>,
    pub(crate) measurements: Vec<Measurement>,
    /// What was not measured, and why.
    pub(crate) skipped: BTreeMap<String, String>,
}

impl Results {
    /// Adds the figures of samples, if there are any.
    pub(crate) fn add(
        &mut self,
        case: &str,
        subject: &str,
        x: Option<f64>,
        unit: Unit,
        samples: &[f64],
    ) {
        let Some(summary) = Summary::of(samples) else {
            return;
        };
        let at = x.map(|x| format!(" at {x}")).unwrap_or_default();
        eprintln!(
            "{case}{at}: {subject} {} {unit} (n {})",
            rounded(summary.p50),
            summary.n
        );
        self.measurements.push(Measurement {
            case: case.to_owned(),
            subject: subject.to_owned(),
            x,
            unit,
            summary,
        });
    }

    /// Adds the outcomes of a case's subjects.
    pub(crate) fn add_all(
        &mut self,
        case: &str,
        x: Option<f64>,
        unit: Unit,
        outcomes: Vec<Outcome>,
    ) {
        for outcome in outcomes {
            if let Some((subject, samples)) = self.measured(case, outcome) {
                self.add(case, subject, x, unit, &samples);
            }
        }
    }

    /// The samples of an outcome. A failure is noted.
    pub(crate) fn measured<T>(
        &mut self,
        case: &str,
        (subject, outcome): Outcome<T>,
    ) -> Option<(&'static str, Vec<T>)> {
        match outcome {
            Ok(samples) => Some((subject, samples)),
            Err(failure) => {
                self.skip(&format!("{case}/{subject}"), failure);
                None
            }
        }
    }

    /// Notes what was not measured, and why.
    pub(crate) fn skip(&mut self, what: &str, why: impl ToString) {
        let why = why.to_string();
        eprintln!("skipped: {what}: {why}");
        self.skipped.insert(what.to_owned(), why);
    }

    /// The measurements of a case, in the order in which they were made.
    pub(crate) fn case<'a>(&'a self, case: &'a str) -> impl Iterator<Item = &'a Measurement> {
        self.measurements.iter().filter(move |it| it.case == case)
    }

    pub(crate) fn find(&self, case: &str, subject: &str, x: Option<f64>) -> Option<&Summary> {
        let is_it = |it: &&Measurement| it.case == case && it.subject == subject && it.x == x;
        self.measurements.iter().find(is_it).map(|it| &it.summary)
    }

    /// Whether the virtual machines of the run were emulated.
    pub(crate) fn is_emulated(&self) -> bool {
        self.facts.get("lab").is_some_and(|lab| lab == "emulated")
    }

    /// Adds another run, which replaces what both measured.
    pub(crate) fn merge(&mut self, other: Self) {
        self.measurements
            .retain(|mine| other.find(&mine.case, &mine.subject, mine.x).is_none());
        // A group that was measured again has noted again what it could not measure.
        let is_measured = |what: &str| {
            let group = what.split('/').next();
            let mut groups = other
                .measurements
                .iter()
                .map(|it| it.case.split('/').next());
            groups.any(|measured| measured == group)
        };
        self.skipped.retain(|what, _| !is_measured(what));
        self.measurements.extend(other.measurements);
        for what in other.facts {
            self.facts.insert(what.0, what.1);
        }
        self.skipped.extend(other.skipped);
    }

    pub(crate) fn to_value(&self) -> Value {
        let measurements: Vec<Value> = self
            .measurements
            .iter()
            .map(|it| {
                let mut value = it.summary.to_value();
                value["case"] = it.case.clone().into();
                value["subject"] = it.subject.clone().into();
                value["unit"] = it.unit.as_str().into();
                if let Some(x) = it.x {
                    value["x"] = rounded(x).into();
                }
                value
            })
            .collect();
        json!({
            "format": FORMAT,
            "facts": self.facts,
            "skipped": self.skipped,
            "measurements": measurements,
        })
    }

    pub(crate) fn from_value(value: &Value) -> Result<Self, Failure> {
        if value.get("format").and_then(Value::as_u64) != Some(FORMAT) {
            return Err(format!("not a record of benchmarks in format {FORMAT}").into());
        }
        let empty = Map::new();
        let texts = |name: &str| -> BTreeMap<String, String> {
            let object = value.get(name).and_then(Value::as_object);
            let entries = object.unwrap_or(&empty).iter();
            entries
                .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
                .collect()
        };
        let list = value.get("measurements").and_then(Value::as_array);
        let measurements = list
            .into_iter()
            .flatten()
            .map(|entry| measurement(entry).ok_or_else(|| format!("not a measurement: {entry}")))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            facts: texts("facts"),
            measurements,
            skipped: texts("skipped"),
        })
    }

    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let text = fs::read_to_string(path)
            .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        let value = serde_json::from_str(&text)
            .map_err(|error| format!("{} is not JSON: {error}", path.display()))?;
        Self::from_value(&value)
    }

    /// Writes one measurement to a line, so that a diff of two records can be read.
    pub(crate) fn write(&self, path: &Path) -> Result<(), Failure> {
        let value = self.to_value();
        let pretty = |name: &str| serde_json::to_string_pretty(&value[name]);
        let lines: Vec<String> = value["measurements"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|entry| format!("    {entry}"))
            .collect();
        let text = format!(
            "{{\n\"format\": {FORMAT},\n\"facts\": {},\n\"skipped\": {},\n\"measurements\": [\n{}\n]\n}}\n",
            pretty("facts")?,
            pretty("skipped")?,
            lines.join(",\n")
        );
        fs::write(path, text)
            .map_err(|error| format!("cannot write {}: {error}", path.display()).into())
    }
}

fn measurement(value: &Value) -> Option<Measurement> {
    let text = |name: &str| value.get(name)?.as_str().map(str::to_owned);
    Some(Measurement {
        case: text("case")?,
        subject: text("subject")?,
        x: value.get("x").and_then(Value::as_f64),
        unit: Unit::of(&text("unit")?)?,
        summary: Summary::from_value(value)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results() -> Results {
        let mut results = Results::default();
        results.facts.insert("cpu".to_owned(), "a".to_owned());
        results.skip("exec/process/dropbear", "not root");
        let us = Unit::Microseconds;
        results.add("exec/round_trip", "agent", Some(10.0), us, &[1.0, 2.0]);
        results.add("footprint/size", "agent", None, Unit::Kibibytes, &[3.0]);
        results.add("footprint/size", "socat", None, Unit::Kibibytes, &[]);
        results
    }

    #[test]
    fn a_record_survives_its_json() {
        let results = results();
        let again = Results::from_value(&results.to_value()).unwrap();
        assert_eq!(again.measurements, results.measurements);
        assert_eq!(again.facts, results.facts);
        assert_eq!(again.skipped, results.skipped);
        assert!(Results::from_value(&json!({ "format": 99 })).is_err());
    }

    #[test]
    fn a_later_run_replaces_what_it_measured_again() {
        let mut first = results();
        let mut second = Results::default();
        second.add("footprint/size", "agent", None, Unit::Kibibytes, &[4.0]);
        first.skip("footprint/file/socat", "it was not installed");
        first.merge(second);
        let skipped: Vec<_> = first.skipped.keys().collect();
        assert_eq!(skipped, ["exec/process/dropbear"]);
        let size = first.find("footprint/size", "agent", None).unwrap();
        assert_eq!(size.p50, 4.0);
        assert_eq!(first.measurements.len(), 2);
    }
}
