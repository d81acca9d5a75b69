//! One model, two contexts: `cargo run --release --example two_contexts -- MODEL`.

use granule::llama::{Context, ContextOptions, Error, GenerateOptions, LoadOptions, Model};

fn main() -> Result<(), Error> {
    let path = std::env::args().nth(1).unwrap_or("crates/granule-llama/models/tales-5m.q8_0.gguf".into());
    let model = Model::load(path, LoadOptions::default())?;
    for start in ["Once upon a time", "Long ago"] {
        let mut context = Context::new(model.clone(), ContextOptions::default())?;
        let prompt = model.tokenizer().encode(start, Default::default())?;
        let text: Result<String, Error> =
            context.generate(&prompt, GenerateOptions::default())?.map(|p| Ok(p?.text)).collect();
        println!("{start} {}\n{:#?}", text?, context.memory_info());
    }
    Ok(())
}
