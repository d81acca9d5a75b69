//! One model, two contexts that share it: `cargo run --release --example two_contexts MODEL`
use granule::llama::{Context, Error, GenerateOptions, LoadOptions, Model};
fn main() -> Result<(), Error> {
    let model = Model::load(std::env::args().nth(1).unwrap_or_default(), LoadOptions::default())?;
    let new = || Context::new(model.clone(), Default::default());
    for (mut context, prompt) in [(new()?, "Once upon a time"), (new()?, "Long ago")] {
        let tokens = model.tokenizer().encode(prompt, Default::default())?;
        for piece in context.generate(&tokens, GenerateOptions::default())? {
            print!("{}", piece?.text);
        }
        println!("\n{:?}", context.memory_info());
    }
    Ok(())
}
