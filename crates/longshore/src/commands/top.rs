//! `longshore top`

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

use longshore_api::links::InstanceUsage;
use longshore_api::v1::UsageView;
use longshore_types::{ByteCount, InstanceId};
use serde::Serialize;

use crate::connection::{ConnectionOptions, ProjectOption};
use crate::failure::Failure;
use crate::output::{Format, table_text};
use crate::table::Table;
use crate::target::Target;

/// The time between the two looks that a rate needs, and between two frames on a terminal.
const INTERVAL: Duration = Duration::from_secs(1);

/// Show what instances use of what they may
///
/// On a terminal the table is drawn again every second until Ctrl-C. CPU is the share of the
/// instance's own limit. MEMORY leaves out what the kernel can drop at once, PEAK does not.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Only this instance, or the instances of this app
    #[arg(value_name = "INSTANCE|APP")]
    target: Option<String>,
    /// Show the table once and end, as without a terminal and with --json
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    project: ProjectOption,
    #[command(flatten)]
    connection: ConnectionOptions,
}

/// An instance with its rate of processor use since the look before.
#[derive(Debug, Serialize, schemars::JsonSchema)]
pub struct Row {
    #[serde(flatten)]
    view: UsageView,
    /// In cores; absent until two looks found it running.
    cpu_cores: Option<f64>,
    /// In hundredths of its limit.
    cpu_percent: Option<f64>,
}

/// Shows what instances use.
pub async fn run(options: Options) -> Result<(), Failure> {
    let connection = options.connection.connect()?;
    let project = options.project.on(&connection);
    let (app, instance) = match &options.target {
        None => (None, None),
        Some(text) => match Target::find(&project, text).await? {
            Target::Instance(instance) => (None, Some(instance.id().clone())),
            Target::App(app) => (Some(app.app), None),
        },
    };
    let look = || project.usage(app.as_ref(), instance.as_ref());
    let mut before = look().await?;
    let format = options.connection.output().format();
    let live = !options.once && format == Format::Text && std::io::stdout().is_terminal();
    loop {
        tokio::time::sleep(INTERVAL).await;
        let now = look().await?;
        let rows = rows(&before, &now);
        if !live {
            return connection.output.data(&rows, |rows| render(rows));
        }
        connection.output.raw(frame(&render(&rows)).as_bytes())?;
        before = now;
    }
}

fn rows(before: &[UsageView], now: &[UsageView]) -> Vec<Row> {
    let before: BTreeMap<&InstanceId, &InstanceUsage> =
        before.iter().filter_map(|view| Some((&view.instance, view.usage.as_ref()?))).collect();
    let row = |view: &UsageView| {
        let cpu_cores = view.usage.as_ref().zip(before.get(&view.instance)).and_then(cores);
        let limit = view.limits.cpu.cores();
        let cpu_percent = cpu_cores.map(|cores| cores / limit * 100.0);
        Row { view: view.clone(), cpu_cores, cpu_percent }
    };
    now.iter().map(row).collect()
}

/// The cores that were used between two looks; absent when it was started anew between them.
fn cores((now, before): (&InstanceUsage, &&InstanceUsage)) -> Option<f64> {
    let used = now.cpu_micros.checked_sub(before.cpu_micros)?;
    let passed = now.at_micros.checked_sub(before.at_micros).filter(|passed| *passed > 0)?;
    Some(used as f64 / passed as f64)
}

/// Draws over the frame before: home, each line to its end, then the rest of the screen.
fn frame(text: &str) -> String {
    format!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n"))
}

fn render(rows: &[Row]) -> String {
    const HEADER: [&str; 8] =
        ["INSTANCE", "CPU", "CORES", "MEMORY", "PEAK", "PIDS", "DISK", "RESTARTS"];
    let mut table = Table::new(&HEADER);
    let unknown = || "-".to_owned();
    for row in rows {
        let (limits, usage) = (&row.view.limits, row.view.usage.as_ref());
        let of = |used: Option<ByteCount>, limit| match used {
            Some(used) => format!("{}/{}", short(used), short(limit)),
            None => unknown(),
        };
        table.row([
            row.view.instance.to_string(),
            row.cpu_percent.map_or_else(unknown, |percent| format!("{percent:.0}%")),
            row.cpu_cores.map_or_else(unknown, |cores| format!("{cores:.2}")),
            of(usage.map(|usage| usage.memory), limits.memory),
            usage.and_then(|usage| usage.memory_peak).map_or_else(unknown, short),
            usage.map_or_else(unknown, |usage| format!("{}/{}", usage.pids, limits.pids)),
            of(usage.and_then(|usage| usage.disk), limits.disk),
            row.view.restarts.to_string(),
        ]);
    }
    table_text(&table)
}

/// A size in few characters: `512K`, `1.5M`, `24M`, `1G`.
fn short(size: ByteCount) -> String {
    let units = [("T", 40), ("G", 30), ("M", 20), ("K", 10)];
    match units.iter().find(|(_, shift)| size.0 >= 1 << shift) {
        None => format!("{}B", size.0),
        Some((unit, shift)) => {
            let tenths = u128::from(size.0) * 10 / (1 << shift);
            match (tenths / 10, tenths % 10) {
                (whole, 0) => format!("{whole}{unit}"),
                (whole @ 0..10, tenth) => format!("{whole}.{tenth}{unit}"),
                (whole, _) => format!("{whole}{unit}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use longshore_types::{InstanceId, InstancePhase, MilliCpu, Resources};

    use super::*;

    fn view(id: &str, cpu_micros: u64, at_micros: u64) -> UsageView {
        let (instance, limits) = (id.parse::<InstanceId>().unwrap(), Resources::default());
        UsageView {
            app: "web".parse().unwrap(),
            location: "here".parse().unwrap(),
            node: "n1".parse().unwrap(),
            phase: InstancePhase::Healthy,
            restarts: 2,
            limits: Resources { cpu: MilliCpu(500), ..limits },
            usage: Some(InstanceUsage {
                instance: instance.clone(),
                at_micros,
                cpu_micros,
                cpu_periods: 0,
                cpu_throttled: 0,
                memory: ByteCount::mib(24),
                memory_peak: Some(ByteCount(27_787_264)),
                pids: 3,
                disk: Some(ByteCount(1_572_864)),
                received: None,
                sent: None,
            }),
            instance,
        }
    }

    #[test]
    fn rates_come_from_two_looks() {
        let before = [view("web-00000001", 100, 0), view("web-00000002", 9_000, 0)];
        let mut now =
            [view("web-00000001", 250_100, 1_000_000), view("web-00000002", 5, 1_000_000)];
        now[1].usage.as_mut().unwrap().disk = None;
        let text = render(&rows(&before, &now));
        assert_eq!(
            text,
            "INSTANCE      CPU  CORES  MEMORY    PEAK  PIDS   DISK     RESTARTS\n\
             web-00000001  50%  0.25   24M/256M  26M   3/512  1.5M/1G  2\n\
             web-00000002  -    -      24M/256M  26M   3/512  -        2\n"
        );
    }

    #[test]
    fn the_widest_values_fit_the_width() {
        let mut wide = view("abcdefgh-00000001", 0, 0);
        wide.limits = Resources {
            cpu: MilliCpu(64_000),
            memory: ByteCount::gib(500),
            pids: 32_768,
            disk: ByteCount::gib(900),
            open_files: None,
            gpu: None,
        };
        let usage = wide.usage.as_mut().unwrap();
        usage.memory = ByteCount::gib(400);
        usage.memory_peak = Some(ByteCount::gib(450));
        usage.pids = 20_000;
        usage.disk = Some(ByteCount::gib(800));
        let mut later = wide.clone();
        later.usage.as_mut().unwrap().at_micros = 1_000_000;
        later.usage.as_mut().unwrap().cpu_micros = 64_000_000;
        let text = render(&rows(&[wide], &[later]));
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(text.contains("400G/500G") && text.contains("800G/900G"), "{text}");
    }

    #[test]
    fn an_instance_without_a_container_has_no_figures() {
        let mut gone = view("web-00000001", 0, 0);
        gone.usage = None;
        let text = render(&rows(&[gone.clone()], &[gone]));
        assert!(
            text.ends_with("web-00000001  -    -      -       -     -     -     2\n"),
            "{text}"
        );
    }
}
