//! Sequences that fork in the middle of a block, each writing to what it shared, and the tokens of
//! the one that is continued greedily.

use std::path::{Path, PathBuf};

use clap::Parser;
use inflight::Token;
use inflight_llm::beam;
use inflight_llm::branches::{Branches, Row};
use inflight_llm::options::Options;
use inflight_llm::sampling::argmax;
use serde_json::Value;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    options: Options,
}

/// A prompt and its greedy output by a plain f32 forward pass.
type Known = [Vec<Token>; 2];

fn oracle() -> Result<Vec<Known>, String> {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/oracle/smollm2_greedy.json");
    let text = std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let oracle: Value = serde_json::from_slice(&text).expect("the oracle is JSON");
    let tokens = |value: &Value| serde_json::from_value(value.clone()).expect("tokens");
    let prompts = oracle["prompts"].as_array().expect("there are prompts").iter();
    Ok(prompts.map(|p| [tokens(&p["prompt_ids"]), tokens(&p["numpy_f32"]["output_ids"])]).collect())
}

/// The model, and the oracle; or why there is none.
fn given(options: &str) -> Result<(Branches, Vec<Known>), String> {
    let model = std::env::var_os("LLM_MODEL").map(PathBuf::from);
    let model = model.ok_or("LLM_MODEL names no model")?;
    let oracle = oracle()?;
    let arguments = ["llm", "--dtype", "f32", "--device", "cpu", "--model"].map(Into::into);
    let arguments = arguments.into_iter().chain([model.into_os_string()]);
    let options = arguments.chain(options.split_whitespace().map(Into::into));
    let loaded = Cli::parse_from(options).options.load().expect("the model");
    let cache = loaded.engine.scheduler().config().cache;
    Ok((Branches::new(loaded.engine.into_runner(), cache).expect("a cache"), oracle))
}

/// Continues a prompt greedily. At its middle, and with every token, children fork off that write
/// other tokens to the block they share, some before the sequence writes to it and some with it.
fn continued(branches: &mut Branches, prompt: &[Token], count: usize) -> Vec<Token> {
    let vocab = branches.vocab();
    let middle = prompt.len() / 2;
    let parent = branches.open();
    branches.run(&[Row { seq: parent, start: 0, tokens: &prompt[..middle] }]).unwrap();
    let seq = branches.fork(parent).unwrap();
    let other = [11, 12, 13];
    // Both write to the block that they share, in one step.
    let rows = [
        Row { seq: parent, start: middle, tokens: &other },
        Row { seq, start: middle, tokens: &prompt[middle..] },
    ];
    let mut token = argmax(&branches.run(&rows).unwrap()[vocab..]);
    branches.close(parent).unwrap();
    let mut output = vec![token];
    let mut children = Vec::new();
    for start in prompt.len()..prompt.len() + count - 1 {
        let child = branches.fork(seq).unwrap();
        if start % 2 == 0 {
            // The child is first, and gets the copy.
            branches.run(&[Row { seq: child, start, tokens: &other }]).unwrap();
        }
        token = argmax(branches.run(&[Row { seq, start, tokens: &[token] }]).unwrap());
        if start % 2 == 1 {
            branches.run(&[Row { seq: child, start, tokens: &other }]).unwrap();
        }
        children.push(child);
        if children.len() > 3 {
            branches.close(children.remove(0)).unwrap();
        }
        output.push(token);
        branches.cache().verify().unwrap();
    }
    children.into_iter().chain([seq]).for_each(|seq| branches.close(seq).unwrap());
    output
}

#[test]
fn forks_do_not_see_what_each_other_writes() {
    for (options, prompts) in
        [("--block-size 16", 15), ("--block-size 3", 4), ("--block-size 1 --num-blocks 4000", 2)]
    {
        let (mut branches, oracle) = match given(options) {
            Ok(given) => given,
            Err(why) => return println!("skipped: {why}"),
        };
        let free = branches.cache().num_free();
        for [prompt, output] in oracle.iter().take(prompts) {
            assert_eq!(&continued(&mut branches, prompt, output.len()), output, "{options}");
        }
        assert_eq!(branches.cache().num_free(), free);
        println!("{prompts} prompts, {options}: equal");
    }
}

#[test]
fn beams_are_found_and_weighed_as_if_each_were_alone() {
    let (mut branches, oracle) = match given("--max-num-seqs 4 --block-size 4 --num-blocks 4000") {
        Ok(given) => given,
        Err(why) => return println!("skipped: {why}"),
    };
    let free = branches.cache().num_free();
    for [prompt, output] in oracle.iter().step_by(4) {
        let greedy = beam::search(&mut branches, prompt, (1, output.len()), &[], 7).unwrap();
        assert_eq!(greedy[0].tokens, *output);
        let found = beam::search(&mut branches, prompt, (4, 12), &[], 512).unwrap();
        assert_eq!(found.len(), 4);
        assert!(found.windows(2).all(|pair| pair[0].score() >= pair[1].score()));
        for beam in &found {
            let alone = logprob(&mut branches, prompt, &beam.tokens);
            assert!((beam.logprob - alone).abs() < 1e-3, "{} and {alone}", beam.logprob);
        }
    }
    assert_eq!(branches.cache().num_free(), free);
    println!("beams of 1 are greedy, and beams of 4 weigh what they do alone");
}

#[test]
fn what_fails_keeps_nothing_and_changes_nothing() {
    let options = "--max-num-seqs 4 --block-size 4 --num-blocks 16 --max-model-len 64";
    let (mut branches, oracle) = match given(options) {
        Ok(given) => given,
        Err(why) => return println!("skipped: {why}"),
    };
    let [prompt, output] = &oracle[1];
    let free = branches.cache().num_free();
    // The prompt takes 10 of 16 blocks, and eight beams soon more than the rest.
    let error = beam::search(&mut branches, prompt, (8, 24), &[], 16).unwrap_err();
    assert!(error.to_string().contains("blocks"), "{error}");
    assert_eq!(branches.cache().num_free(), free);

    // A wrong row among forks, before it and after it: the copies that it would have made are made.
    let vocab = branches.vocab();
    let parent = branches.open();
    branches.run(&[Row { seq: parent, start: 0, tokens: &prompt[..prompt.len() - 2] }]).unwrap();
    let seq = branches.fork(parent).unwrap();
    let start = prompt.len() - 2;
    let wrong = [prompt[start], vocab as Token];
    let rows = [Row { seq: parent, start, tokens: &[7] }, Row { seq, start, tokens: &wrong }];
    assert!(branches.run(&rows).is_err());
    assert!(branches.run(&[Row { seq, start, tokens: &[] }]).is_err());
    let rows = [rows[0], Row { seq, start, tokens: &prompt[start..] }];
    let logits = &branches.run(&rows).unwrap()[vocab..];
    assert_eq!(argmax(logits), output[0]);
    [parent, seq].into_iter().for_each(|seq| branches.close(seq).unwrap());
    assert_eq!(branches.cache().num_free(), free);
    println!("a search without room, a token that there is not: no block is lost");
}

/// The logarithm of a continuation's probability, token by token in a sequence of its own.
fn logprob(branches: &mut Branches, prompt: &[Token], tokens: &[Token]) -> f64 {
    let seq = branches.open();
    let (mut sum, mut start, mut next) = (0.0, 0, prompt);
    for token in tokens.chunks(1) {
        let logits = branches.run(&[Row { seq, start, tokens: next }]).unwrap();
        let weights = logits.iter().map(|&logit| f64::from(logit - logits[0]).exp());
        let total = weights.sum::<f64>().ln() + f64::from(logits[0]);
        sum += f64::from(logits[token[0] as usize]) - total;
        (start, next) = (start + next.len(), token);
    }
    branches.close(seq).unwrap();
    sum
}
