//! Host time of the engine per step: cpu_overheads.csv.

use super::location::ProfileFile;
use super::table::{ReadError, Table};

/// Host time of one step at one batch size. Milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CpuOverhead {
    /// Sequences in the batch.
    pub batch_size: u64,
    /// Choosing the batch.
    pub schedule_ms: f64,
    /// Sampling, launch to result.
    pub sampler_ms: f64,
    /// Building the input tensors.
    pub prepare_inputs_ms: f64,
    /// Handing results back to requests.
    pub process_outputs_ms: f64,
    /// Talking to the workers.
    pub communication_ms: f64,
    /// What was seen from outside and cannot be split; 0 where the parts are known.
    pub gap_ms: f64,
    /// Line of the file.
    pub line: u64,
}

impl CpuOverhead {
    /// All of it.
    pub fn total_ms(&self) -> f64 {
        self.schedule_ms
            + self.sampler_ms
            + self.prepare_inputs_ms
            + self.process_outputs_ms
            + self.communication_ms
            + self.gap_ms
    }
}

/// The rows of `models` (a name and its aliases) at `tensor_parallel`, by ascending batch size.
///
/// Medians, as Vidur takes them; communication is stored as a mean only. A row with a `host_gap` may
/// leave parts empty: they are inside the gap.
///
/// # Errors
/// When the file cannot be used; the message names line and column.
pub fn read_cpu_overheads(
    file: &ProfileFile,
    models: &[&str],
    tensor_parallel: u32,
) -> Result<Vec<CpuOverhead>, ReadError> {
    let table = Table::parse(file)?;
    let column = |name| table.column(name, "cpu_overheads.csv");
    let (model, degree) = (column("model_name")?, column("tensor_parallel_degree")?);
    let batch = column("batch_size")?;
    let times = [
        column("schedule_median")?,
        column("sampler_e2e_median")?,
        column("prepare_inputs_e2e_median")?,
        column("process_model_outputs_median")?,
        column("ray_comm_time_mean")?,
    ];
    let gap = table.optional("host_gap_median");
    let mut rows = Vec::new();
    let (mut degrees, mut names) = (Vec::new(), Vec::new());
    for row in &table.rows {
        let name = table.text(row, model);
        if !models.contains(&name) {
            names.push(name.to_string());
            continue;
        }
        let n = table.count(row, degree)?;
        if n != u64::from(tensor_parallel) {
            degrees.push(n);
            continue;
        }
        let gap_ms = match gap {
            Some(column) => table.time(row, column)?,
            None => None,
        };
        let mut ms = [0.0; 5];
        for (ms, column) in ms.iter_mut().zip(times) {
            *ms = table.time(row, column)?.or(gap_ms.map(|_| 0.0)).ok_or_else(|| {
                ReadError::Missing {
                    file: file.name.clone(),
                    line: super::table::line(row),
                    column: table.name(column).into(),
                    rows: 1,
                }
            })?;
        }
        let [schedule_ms, sampler_ms, prepare_inputs_ms, process_outputs_ms, communication_ms] = ms;
        rows.push(CpuOverhead {
            batch_size: table.count(row, batch)?,
            schedule_ms,
            sampler_ms,
            prepare_inputs_ms,
            process_outputs_ms,
            communication_ms,
            gap_ms: gap_ms.unwrap_or(0.0),
            line: super::table::line(row),
        });
    }
    if rows.is_empty() && !degrees.is_empty() {
        degrees.sort_unstable();
        degrees.dedup();
        let present: Vec<String> = degrees.iter().map(u64::to_string).collect();
        return Err(ReadError::NoDegree {
            file: file.name.clone(),
            column: "tensor_parallel_degree",
            wanted: tensor_parallel.to_string(),
            present: present.join(", "),
        });
    }
    if rows.is_empty() {
        names.sort();
        names.dedup();
        return Err(ReadError::NoShape {
            file: file.name.clone(),
            wanted: format!("model_name {}", models.first().copied().unwrap_or("?")),
            present: names.join(", "),
        });
    }
    rows.sort_by_key(|row| row.batch_size);
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CSV: &str = ",schedule_median,sampler_e2e_median,prepare_inputs_e2e_median,process_model_outputs_median,model_name,batch_size,tensor_parallel_degree,ray_comm_time_mean\n\
        0,1,2,3,4,org/m,16,2,5\n\
        1,0.5,2,3,4,org/m,8,2,5\n";

    fn read(models: &[&str], tp: u32) -> Result<Vec<CpuOverhead>, ReadError> {
        read_cpu_overheads(&ProfileFile::from_bytes("cpu.csv", CSV), models, tp)
    }

    #[test]
    fn rows_come_by_batch_size_with_their_total() {
        let rows = read(&["other", "org/m"], 2).unwrap();
        assert_eq!(rows.iter().map(|r| r.batch_size).collect::<Vec<_>>(), [8, 16]);
        assert_eq!(rows[1].total_ms(), 15.0);
    }

    #[test]
    fn an_absent_model_or_degree_is_named_with_what_there_is() {
        assert_eq!(
            read(&["org/m"], 4).unwrap_err().to_string(),
            "cpu.csv: no rows with tensor_parallel_degree = 4; it has 2: choose one of these, or \
             measure what is missing"
        );
        assert!(read(&["x"], 2).unwrap_err().to_string().contains("it has org/m"));
    }
}
