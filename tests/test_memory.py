"""Memory that runs out, planted: in training, validation and prediction the batch goes through in
parts, the result is that of the smaller parts, and the report says so."""
import numpy as np
import pandas as pd
import torch
from conftest import rows_of, tiny_encoder
from insight_nb.data.labels import LabelEncoder
from insight_nb.data.sources import open_table
from insight_nb.eval.report import Report
from insight_nb.jobs.setup import FineTuningSetup
from insight_nb.jobs.training import make_trainer, share_right, split_rows, token_dataset
from insight_nb.models.tasks import ClassificationTask
from insight_nb.ship.bundle import load_bundle, save_bundle
from insight_nb.train.inference import predict_logits


def trained(tmp_path, encoder, most=None, pass_tokens=None):
    "A whole job on texts of 16 tokens; `most`: tokens that this machine can take at once."
    frame = pd.DataFrame(rows_of(120))
    frame["text"] += " and so on, and on and on, as long as it takes to fill the line"
    source, parts = split_rows(open_table(frame))
    setup = FineTuningSetup(encoder, max_length=16, device="cpu")
    labels = LabelEncoder.fit(source.labels)
    rows = token_dataset(source.texts, setup.encoder.tokenizer, setup.length,
                         labels.transform(source.labels))[0]
    sides = [rows.select(at) for at in (parts.train, parts.valid, parts.test)]
    assert set(rows.lengths) == {16}
    model = setup.model(ClassificationTask(labels.names))
    inside = model.forward

    def forward(batch):
        if most and batch.input_ids.numel() > most:
            raise torch.OutOfMemoryError("planted")
        return inside(batch)
    model.forward = forward
    trainer = make_trainer(setup, model, sides, share_right, epochs=2, batch_size=16,
                           pass_tokens=pass_tokens)
    trainer.fit()
    logits = predict_logits(model, sides[2])
    save_bundle(tmp_path / "bundle", model, setup.length, force=True)
    report, setup.texts = Report("classify", labels.names), source.texts[:3]
    setup.describe(report, source, parts, trainer, load_bundle(tmp_path / "bundle", device="cpu"))
    return model.state_dict(), logits, report.data["notes"]


def test_the_result_is_that_of_the_smaller_batch(tmp_path):
    tiny_encoder("tiny")
    weights, logits, notes = trained(tmp_path, "tiny", most=200)
    wanted, wanted_logits, calm = trained(tmp_path, "tiny", pass_tokens=128)
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=0, atol=1e-6)
    np.testing.assert_allclose(logits, wanted_logits, rtol=0, atol=1e-5)
    said = [note for note in notes if "memory ran out" in note]
    assert "at step 0 with 256 tokens: up to 128 go through at once" in said[0]
    assert any("in a prediction" in note for note in said)
    assert not [note for note in calm if "memory" in note]
