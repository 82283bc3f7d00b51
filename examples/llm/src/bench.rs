//! `llm bench`: tokens a second, prompts and outputs apart, as `llama-batched-bench` counts them.

use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args;
use inflight::{Request, RequestId, Time, Token};

use crate::engine::Engine;
use crate::options::{Options, positive};
use crate::print;
use crate::sampling::argmax;

/// Measures tokens a second.
#[derive(Args, Debug)]
pub struct Bench {
    #[command(flatten)]
    options: Options,
    /// Tokens of each prompt
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = positive)]
    prompt: usize,
    /// Tokens of each output
    #[arg(long, value_name = "N", default_value_t = 128)]
    output: u32,
    /// Requests at once
    #[arg(
        long, value_name = "N", value_delimiter = ',', default_value = "1,8,32",
        value_parser = positive
    )]
    streams: Vec<usize>,
    /// Each is measured so often; the median is told
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = positive)]
    runs: usize,
}

impl Bench {
    /// Prints a table.
    pub fn run(self) -> Result<()> {
        if self.output < 2 {
            bail!("--output is at least 2: the first token is the prompt's");
        }
        let most = self.streams.iter().copied().max().unwrap_or(1);
        let mut options =
            Options { max_num_seqs: most, no_prefix_cache: true, ..self.options.clone() };
        if options.num_blocks.is_none() {
            let blocks = (self.prompt + self.output as usize).div_ceil(options.block_size);
            options.num_blocks = Some(most * blocks);
        }
        let mut engine = options.load()?.engine;
        let (length, most) =
            (self.prompt + self.output as usize, engine.scheduler().config().max_model_len);
        if length > most {
            bail!("--prompt and --output: {length} tokens, and a request has {most} at most");
        }
        print::line(format!(
            "prompts of {}, outputs of {} tokens; tokens/s",
            self.prompt, self.output
        ))?;
        print::line("streams    prompts    outputs")?;
        for &streams in &self.streams {
            let mut runs = Vec::new();
            let before = engine.scheduler().stats().preemptions;
            for run in 0..self.runs {
                runs.push(self.measure(&mut engine, streams, run)?);
            }
            let median = |of: fn(&(f64, f64)) -> f64| {
                let mut values: Vec<f64> = runs.iter().map(of).collect();
                values.sort_by(f64::total_cmp);
                values[values.len() / 2]
            };
            let (prompts, outputs) = (median(|run| run.0), median(|run| run.1));
            print::line(format!("{streams:7} {prompts:10.1} {outputs:10.1}"))?;
            let preemptions = engine.scheduler().stats().preemptions - before;
            if preemptions > 0 {
                eprintln!(
                    "{preemptions} preemptions: --num-blocks are too few for {streams} streams"
                );
            }
        }
        Ok(())
    }

    /// Tokens a second of prompts, until all have given their first output, and of the outputs
    /// that follow.
    fn measure(&self, engine: &mut Engine, streams: usize, run: usize) -> Result<(f64, f64)> {
        let vocab = engine.runner().shape().vocab as u64;
        for stream in 0..streams {
            let id = (run * streams + stream) as u64;
            let token = |at: usize| ((id * 7919 + at as u64 * 104_729 + 13) % vocab) as Token;
            let prompt = (0..self.prompt).map(token).collect();
            engine.scheduler_mut().submit(Request::new(RequestId(id), prompt, self.output))?;
        }
        let started = Instant::now();
        let (mut begun, mut prompts_took, mut early, mut all) = (0, None, 0, 0);
        while engine.scheduler().num_unfinished() > 0 {
            let outputs = engine.step_with(Time(0), |_| true, |_, logits| argmax(logits))?;
            let rows = outputs.step().rows().iter();
            begun += rows.filter(|row| row.samples && row.num_output == 0).count();
            all += outputs.num_tokens();
            if prompts_took.is_none() {
                early = all;
                prompts_took = (begun == streams).then(|| started.elapsed().as_secs_f64());
            }
        }
        let prompts_took = prompts_took.unwrap_or_default();
        let rest = started.elapsed().as_secs_f64() - prompts_took;
        if all != streams * self.output as usize {
            bail!("{all} tokens came of {streams} times {}: see --num-blocks", self.output);
        }
        Ok(((streams * self.prompt) as f64 / prompts_took, (all - early) as f64 / rest))
    }
}
