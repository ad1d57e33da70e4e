//! `rushes simulate`: runs the scheduler on paper. Opens no bundle and no graph.

mod costs;
mod picture;
mod table;

use super::global::GlobalArgs;
use super::render;
use crate::Error;
use bundle::Field;
use bundle::atomic::write_atomic;
use clap::Args;
use costs::CostsChoice;
use runtime::scheduler::Order;
use runtime::simulation::{Arrivals, CostWorld, Costs, Scenario, SimulatedRun, Summary, simulate};
use serde_json::json;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The arguments of `rushes simulate`.
#[derive(Debug, Args)]
pub(super) struct SimulateArgs {
    /// Read the jobs and the times of their arrival from this JSON file
    #[arg(long, value_name = "FILE")]
    arrivals: PathBuf,
    /// Take times, memory and devices from this JSON file, or from a file of this program: a14b-24gib, a14b-48gib,
    /// a14b-80gib or a14b-141gib
    #[arg(long, value_name = "FILE")]
    costs: CostsChoice,
    /// Order of the jobs in the table and the picture: waves or first-come. The totals are shown for both
    #[arg(long, value_name = "NAME", default_value = "waves")]
    order: Order,
    /// Write a picture of the devices over time to this SVG file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// Runs the command.
pub(super) fn run(args: &SimulateArgs, global: &GlobalArgs) -> Result<ExitCode, Error> {
    if let Some(path) = &args.svg {
        check_picture(path)?;
    }
    let costs = args.costs.read()?;
    let name = args.arrivals.display().to_string();
    let arrivals = Arrivals::parse(&read(&args.arrivals, Field::Arrivals)?, &name)?;
    let scenario = Scenario::new(&arrivals, &costs)?;
    let other = match args.order {
        Order::Waves => Order::FirstCome,
        Order::FirstCome => Order::Waves,
    };
    let shown = run_in(args.order, &costs, &scenario)?;
    let compared = run_in(other, &costs, &scenario)?;
    let (summary, beside) = (Summary::new(&shown), Summary::new(&compared));
    if let Some(path) = &args.svg {
        write_atomic(path, picture::draw(&shown, &scenario, &costs.about).as_bytes())?;
    }
    let clips: serde_json::Map<String, serde_json::Value> =
        scenario.clips.iter().map(|(job, clip)| (job.0.to_string(), json!(clip))).collect();
    let value = json!({
        "event": "simulation",
        "order": args.order.name(),
        "clips": clips,
        args.order.name(): summary,
        other.name(): beside,
        "svg": args.svg.as_deref().map(render::path),
    });
    let text = table::draw(&costs.about, &scenario, (args.order, &summary), (other, &beside));
    render::result(global.json, &value, &text)?;
    Ok(ExitCode::SUCCESS)
}

fn run_in(order: Order, costs: &Costs, scenario: &Scenario) -> Result<SimulatedRun, Error> {
    let mut world = CostWorld::new(costs, &scenario.clips);
    let run = simulate(costs.settings(order), scenario.events.clone(), &mut world);
    Ok(run.map_err(runtime::Error::from)?)
}

/// Checks that a picture replaces nothing but a picture of this command.
fn check_picture(path: &Path) -> Result<(), Error> {
    let Ok(mut file) = std::fs::File::open(path) else { return Ok(()) };
    let mut begin = [0; picture::BEGIN.len()];
    if file.read_exact(&mut begin).is_ok() && begin == *picture::BEGIN.as_bytes() {
        return Ok(());
    }
    let rule = "the file exists, and is not a picture of `rushes simulate`";
    Err(Error::argument("--svg", path.display(), rule, "name another file, or remove it"))
}

/// The text of a file that the user named.
fn read(path: &Path, field: Field) -> Result<String, bundle::Error> {
    std::fs::read_to_string(path).map_err(|error| {
        let fix = match field {
            Field::Costs => {
                "name a readable JSON file, or one of a14b-24gib, a14b-48gib, a14b-80gib and a14b-141gib"
            }
            _ => "name a readable JSON file",
        };
        bundle::Error::value(field, format!("`{}`", path.display()), error.to_string(), fix)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use runtime::scheduler::{JobId, Outcome};

    const EIGHT: &str = r#"{"jobs": [{"at": 0, "clip": "480p81", "count": 8}]}"#;

    fn summaries(costs: &str, arrivals: &str) -> [Summary; 2] {
        let costs = costs.parse::<CostsChoice>().unwrap().read().unwrap();
        let scenario = Scenario::new(&Arrivals::parse(arrivals, "test").unwrap(), &costs).unwrap();
        [Order::Waves, Order::FirstCome].map(|order| Summary::new(&run_in(order, &costs, &scenario).unwrap()))
    }

    #[test]
    fn eight_clips_on_24_gib_swap_once_instead_of_fifteen_times() {
        let [waves, first_come] = summaries("a14b-24gib", EIGHT);
        assert_eq!((waves.counts.swaps, waves.counts.waves), (1, 1));
        assert_eq!(first_come.counts.swaps, 15);
        assert!(waves.clips_per_hour > first_come.clips_per_hour);
    }

    #[test]
    fn nothing_swaps_where_both_experts_stay_open() {
        for costs in ["a14b-48gib", "a14b-80gib", "a14b-141gib"] {
            for summary in summaries(costs, EIGHT) {
                assert_eq!(summary.counts.swaps, 0, "{costs}");
            }
        }
    }

    #[test]
    fn a_preview_on_24_gib_starts_at_the_next_step_boundary() {
        let arrivals = r#"{"jobs": [
            {"at": 0, "clip": "480p81", "count": 8},
            {"at": 1000, "clip": "preview", "priority": "preview"}
        ]}"#;
        let costs = "a14b-24gib".parse::<CostsChoice>().unwrap().read().unwrap();
        let scenario = Scenario::new(&Arrivals::parse(arrivals, "test").unwrap(), &costs).unwrap();
        let run = run_in(Order::Waves, &costs, &scenario).unwrap();
        let preview = JobId(9);
        let first_step =
            run.spans.iter().find(|span| span.job == preview && span.device.to_string() == "cuda:0");
        let step = costs.clips["480p81"].experts[0].step.value.get();
        let encode = costs.clips["preview"].encode.value.get();
        let waited = first_step.unwrap().from.get() - 1000.0;
        assert!(waited <= step + encode, "{waited} s");
        assert!(Summary::new(&run).counts.swaps <= 3);
    }

    #[test]
    fn a_table_and_a_picture_are_drawn() {
        let arrivals = r#"{"jobs": [
            {"at": 0, "clip": "480p81", "count": 2},
            {"at": 60, "clip": "preview", "priority": "preview"},
            {"at": 90, "clip": "480p81", "cancelled_after": 30}
        ]}"#;
        let costs = "a14b-24gib".parse::<CostsChoice>().unwrap().read().unwrap();
        let scenario = Scenario::new(&Arrivals::parse(arrivals, "test").unwrap(), &costs).unwrap();
        let runs = [Order::Waves, Order::FirstCome].map(|order| run_in(order, &costs, &scenario).unwrap());
        let [waves, first] = runs.each_ref().map(Summary::new);
        let text = table::draw("test", &scenario, (Order::Waves, &waves), (Order::FirstCome, &first));
        insta::assert_snapshot!(text);
        let picture = picture::draw(&runs[0], &scenario, "a < b & c");
        assert!(picture.starts_with("<svg ") && picture.trim_end().ends_with("</svg>"));
        assert!(picture.contains("a &lt; b &amp; c") && picture.contains("url(#hatch-3)"));
    }

    /// The first block of a kind after a heading of `docs/scheduling.md`.
    fn documented(heading: &str, kind: &str) -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/scheduling.md");
        let page = std::fs::read_to_string(path).unwrap();
        let section = page.split(&format!("\n## {heading}\n")).nth(1).unwrap();
        let block = section.split(&format!("```{kind}\n")).nth(1).unwrap();
        block.split("```").next().unwrap().to_owned()
    }

    #[test]
    fn the_documented_files_are_read_and_give_the_documented_table() {
        let costs = Costs::parse(&documented("Costs", "json"), "docs").unwrap();
        let short = Arrivals::parse(r#"{"jobs": [{"at": 0, "clip": "short", "count": 2}]}"#, "test").unwrap();
        let run = run_in(Order::Waves, &costs, &Scenario::new(&short, &costs).unwrap()).unwrap();
        assert!(Summary::new(&run).jobs.iter().all(|job| job.outcome == Some(Outcome::Done)));

        let costs = "a14b-24gib".parse::<CostsChoice>().unwrap().read().unwrap();
        let arrivals = Arrivals::parse(&documented("Arrivals", "json"), "docs").unwrap();
        let scenario = Scenario::new(&arrivals, &costs).unwrap();
        let [waves, first] = [Order::Waves, Order::FirstCome]
            .map(|order| Summary::new(&run_in(order, &costs, &scenario).unwrap()));
        let text = table::draw(&costs.about, &scenario, (Order::Waves, &waves), (Order::FirstCome, &first));
        assert_eq!(documented("Simulating", "text"), text);
    }

    /// The documented costs, with both experts on a pair of devices.
    fn costs_of_a_pair() -> String {
        let costs = documented("Costs", "json");
        let (one, pair) = (
            "\"device\": \"cuda:0\",\n      \"weights\"",
            "\"devices\": [\"cuda:0\", \"cuda:1\"],\n      \"weights\"",
        );
        let (budget, budgets) = (
            "sheet\" } }\n",
            "sheet\" } },\n{ \"device\": \"cuda:1\", \"budget\": { \"value\": 20000000000, \"source\": \"test\" } }\n",
        );
        assert!(costs.contains(one) && costs.contains(budget));
        costs.replace(one, pair).replace(budget, budgets)
    }

    #[test]
    fn an_expert_on_a_pair_is_shown_on_both_devices() {
        let costs = Costs::parse(&costs_of_a_pair(), "test").unwrap();
        let written = serde_json::to_string(&costs).unwrap();
        assert_eq!(Costs::parse(&written, "test").unwrap(), costs);
        let arrivals =
            Arrivals::parse(r#"{"jobs": [{"at": 0, "clip": "short", "count": 2}]}"#, "test").unwrap();
        let scenario = Scenario::new(&arrivals, &costs).unwrap();
        let runs = [Order::Waves, Order::FirstCome].map(|order| run_in(order, &costs, &scenario).unwrap());
        let [waves, first] = runs.each_ref().map(Summary::new);
        let [zero, one] = &waves.devices[..] else { panic!("two devices") };
        assert!(one.in_pair > 0.8 && (one.in_pair - one.busy).abs() < 1e-9 && zero.busy > zero.in_pair);
        let text = table::draw("test", &scenario, (Order::Waves, &waves), (Order::FirstCome, &first));
        for device in ["cuda:0", "cuda:1"] {
            assert_eq!(text.matches(&format!("{device} in a pair ")).count(), 1, "{text}");
        }
        let picture = picture::draw(&runs[0], &scenario, "test");
        assert_eq!((picture.matches(">e0/2<").count(), picture.matches("steps in a pair").count()), (4, 4));
    }

    #[test]
    fn wrong_files_are_refused_by_name() {
        let shown = |error: bundle::Error| render::report(&error).to_string();
        insta::assert_snapshot!(shown("a14b-24gb".parse::<CostsChoice>().unwrap().read().unwrap_err()), @"--costs cannot be `a14b-24gb`: No such file or directory (os error 2) (name a readable JSON file, or one of a14b-24gib, a14b-48gib, a14b-80gib and a14b-141gib)");
        insta::assert_snapshot!(shown(Arrivals::parse("{\"jobs\": []}", "jobs.json").unwrap_err()), @"--arrivals cannot be `jobs.json`: it has 0 jobs (give 1 to 1000 jobs)");
        insta::assert_snapshot!(shown(Arrivals::parse("{\"jobs\": [{\"at\": -1, \"clip\": \"a\"}]}", "jobs.json").unwrap_err()), @"--arrivals cannot be `jobs.json`: seconds cannot be -1: it is not a length of time (write a finite number from 0, like 12.5) at line 1 column 19 (follow the example in docs/scheduling.md)");
        insta::assert_snapshot!(shown(Costs::parse("{}", "costs.json").unwrap_err()), @"--costs cannot be `costs.json`: missing field `about` at line 1 column 2 (follow the example in docs/scheduling.md)");
        let broken = |from: &str, to: &str| {
            Costs::parse(&costs_of_a_pair().replace(from, to), "costs.json").unwrap_err()
        };
        let pair = "[\"cuda:0\", \"cuda:1\"]";
        let both = shown(broken(pair, &format!("{pair}, \"device\": \"cuda:0\"")));
        assert!(both.contains("a component has `device` or `devices` (give one of the two keys)"), "{both}");
        insta::assert_snapshot!(shown(broken(pair, "[\"cuda:0\", \"cuda:2\"]")), @"--costs cannot be `costs.json`: the expert 0 is placed on cuda:2, which is not among the devices (follow the example in docs/scheduling.md)");
        let decoder = "\"decoder\": {\n    \"device";
        insta::assert_snapshot!(shown(broken(&format!("{decoder}\": \"cuda:0\""), &format!("{decoder}s\": {pair}"))), @"--costs cannot be `costs.json`: the decoder is placed on cuda:0+cuda:1: only an expert can be on a pair (follow the example in docs/scheduling.md)");
        let costs = "a14b-24gib".parse::<CostsChoice>().unwrap().read().unwrap();
        let unknown = Arrivals::parse("{\"jobs\": [{\"at\": 0, \"clip\": \"8k\"}]}", "jobs.json").unwrap();
        insta::assert_snapshot!(shown(Scenario::new(&unknown, &costs).unwrap_err()), @"--arrivals cannot be clip `8k`: the costs have no such clip (use one of 480p81, preview)");
    }
}
