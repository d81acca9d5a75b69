//! Generation: the iterator writes what greedy evaluation would, ends where it should, and can be stopped.

use granule_kv::KvType;
use granule_llama::{Context, Error, Finish, GenerateOptions, SamplingOptions, TokenId};

use crate::{context, encode, greedy, load, tales};

const PROMPT: &str = "Once upon a time the baker Mia and the sailor Leo lived near the harbor Eastwick.";

fn options(n_predict: usize) -> GenerateOptions {
    GenerateOptions {
        sampling: SamplingOptions::greedy(),
        n_predict: Some(n_predict),
        ..GenerateOptions::default()
    }
}

/// Text, tokens and the reason of the end.
fn generate(
    context: &mut Context,
    prompt: &[TokenId],
    options: GenerateOptions,
) -> (String, Vec<TokenId>, Finish) {
    let mut generation = context.generate(prompt, options).unwrap();
    let (mut text, mut tokens) = (String::new(), Vec::new());
    for piece in generation.by_ref() {
        let piece = piece.unwrap();
        text.push_str(&piece.text);
        tokens.extend(piece.token);
    }
    (text, tokens, generation.finish().unwrap().clone())
}

#[test]
fn it_writes_what_greedy_evaluation_would() {
    let model = load(tales());
    let prompt = encode(&model, PROMPT);
    let mut context = context(&model, 256, 64, KvType::F16);
    let want = greedy(&mut context, &prompt, 40);
    context.clear().unwrap();
    let (text, tokens, finish) = generate(&mut context, &prompt, options(40));
    assert_eq!(tokens, want);
    assert_eq!(text, model.tokenizer().decode(&want).unwrap());
    assert_eq!(finish, Finish::Length);
    // The last token is written and not yet evaluated: a next generation begins with it.
    assert_eq!(context.tokens(), [&prompt[..], &want[..39]].concat());
}

#[test]
fn it_ends_with_the_text_and_with_the_context() {
    let model = load(tales());
    let prompt = encode(&model, PROMPT);
    let mut context = context(&model, 1024, 64, KvType::F16);
    let (_, tokens, finish) = generate(&mut context, &prompt, options(2000));
    assert_eq!(finish, Finish::EndOfText);
    assert!(model.tokenizer().is_eog(*tokens.last().unwrap()));
    let mut small = crate::context(&model, prompt.len() + 10, 64, KvType::F16);
    let (_, tokens, finish) = generate(&mut small, &prompt, options(2000));
    assert_eq!(finish, Finish::ContextFull);
    assert_eq!(tokens.len(), 11);
}

#[test]
fn it_can_be_stopped_and_taken_up_again() {
    let model = load(tales());
    let prompt = encode(&model, PROMPT);
    let mut context = context(&model, 256, 64, KvType::F16);
    let (_, want, _) = generate(&mut context, &prompt, options(40));
    context.clear().unwrap();
    let cancel = context.cancel_token();
    let mut generation = context.generate(&prompt, options(40)).unwrap();
    let mut tokens: Vec<TokenId> =
        generation.by_ref().take(12).filter_map(|piece| piece.unwrap().token).collect();
    cancel.cancel();
    tokens.extend(generation.by_ref().filter_map(|piece| piece.unwrap().token));
    assert_eq!(generation.finish(), Some(&Finish::Cancelled));
    assert_eq!(tokens, want[..12]);
    // What was not evaluated because of it is not in the context, and everything else is.
    let whole: Vec<TokenId> = prompt.iter().chain(&want).copied().collect();
    let reached = context.tokens().len();
    assert_eq!(context.tokens(), &whole[..reached]);
    assert!(matches!(context.eval(&whole[reached..]), Err(Error::Cancelled)));
    assert_eq!(context.tokens().len(), reached);
    cancel.reset();
    let (_, rest, _) = generate(&mut context, &whole[reached..prompt.len() + 12], options(28));
    assert_eq!([&want[..12], &rest[..]].concat(), want);
}

#[test]
fn dropping_it_ends_it_and_keeps_the_context() {
    let model = load(tales());
    let prompt = encode(&model, PROMPT);
    let mut context = context(&model, 256, 64, KvType::F16);
    context.generate(&prompt, options(40)).unwrap().by_ref().take(5).for_each(drop);
    assert!(context.tokens().len() >= prompt.len());
    context.clear().unwrap();
    assert_eq!(generate(&mut context, &prompt, options(3)).1.len(), 3);
}

#[test]
fn bad_options_change_nothing() {
    let model = load(tales());
    let prompt = encode(&model, PROMPT);
    let mut context = context(&model, 256, 64, KvType::F16);
    let bad = SamplingOptions { top_p: 0.0, ..SamplingOptions::default() };
    let refused = context.generate(&prompt, GenerateOptions { sampling: bad, ..GenerateOptions::default() });
    assert!(matches!(refused.map(|_| ()), Err(Error::InvalidSampling { option: "top_p", .. })));
    assert!(context.tokens().is_empty());
}
