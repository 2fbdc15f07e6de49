// What llama.cpp makes of GGUF files: one JSON request a line on standard input, one JSON answer a line on standard
// output. Run by llama_cpp.py with the path of node-llama-cpp's index.js.
import {createInterface} from "node:readline";
import {pathToFileURL} from "node:url";

const {getLlama, LlamaLogLevel} = await import(pathToFileURL(process.argv[2]));
const log = [];
const llama = await getLlama({
    gpu: false, build: "never", progressLogs: false, maxThreads: 1, logLevel: LlamaLogLevel.debug,
    logger: (level, message) => log.push(message)
});

async function logits(model, row, size) {
    // The cache of keys and values in float32: the default is float16, which alone changes logits by 1e-3.
    const context = await model.createContext({
        contextSize: size, batchSize: size, threads: 1, flashAttention: false,
        experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32"
    });
    const wanted = row.map((id) => [id, {generateNext: {logits: true}}]);
    const answers = await context.getSequence().controlledEvaluate(wanted);
    await context.dispose();
    return answers.map((answer) => {
        const values = new Array(answer.next.logits.size);
        for (const [id, value] of answer.next.logits) values[id] = value;
        return values;
    });
}

async function answer({file, texts = [], rows = [], context = 64}) {
    log.length = 0;
    let model;
    try {
        model = await llama.loadModel({modelPath: file, useMmap: false, gpuLayers: 0});
    } catch (error) {
        return {error: [String(error), ...log.filter((line) => /error/i.test(line))].join("; ")};
    }
    const size = model.fileInfo.metadata.tokenizer.ggml.tokens.length;
    const made = {
        bos: model._model.tokenBos(), eos: model._model.tokenEos(), eot: model._model.eotToken(),
        adds_bos: model._model.shouldPrependBosToken(), adds_eos: model._model.shouldAppendEosToken(),
        eog: Array.from({length: size}, (_, id) => id).filter((id) => model._model.isEogToken(id)),
        plain: texts.map((text) => Array.from(model._model.tokenize(text, false))),
        special: texts.map((text) => Array.from(model._model.tokenize(text, true))),
        logits: []
    };
    for (const row of rows) made.logits.push(await logits(model, row, context));
    await model.dispose();
    return made;
}

for await (const line of createInterface({input: process.stdin}))
    process.stdout.write(JSON.stringify(await answer(JSON.parse(line))) + "\n");
process.exit(0);
