import pytest
import torch

from nlft_ray.core.alignment import pad_batch, predicting_positions


def test_the_position_before_predicts():
    input_ids, response_start = [1, 2, 3, 4, 5], 3
    positions = predicting_positions(response_start, 2)
    assert [input_ids[position] for position in positions] == [3, 4]
    assert [input_ids[position + 1] for position in positions] == [4, 5]


@pytest.mark.parametrize(("prompt", "response"), [([], [1]), ([1], [])])
def test_nothing_to_predict_from_or_nothing_to_predict(prompt, response):
    with pytest.raises(ValueError, match="response"):
        pad_batch([([1, 2], 1), (prompt + response, len(prompt))], pad_id=0)
    with pytest.raises(ValueError, match="response"):
        predicting_positions(len(prompt), len(response))


def test_batch():
    batch = pad_batch([([5, 6, 7, 8, 9], 2), ([1, 2, 3], 1), ([4, 5], 1)], pad_id=-7)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9], [1, 2, 3, -7, -7], [4, 5, -7, -7, -7]]
    assert batch.keep.nonzero().tolist() == [[0, 1], [0, 2], [0, 3], [1, 0], [1, 1], [2, 0]]
    assert batch.targets.tolist() == [7, 8, 9, 2, 3, 5]
    assert [batch.input_ids.dtype, batch.keep.dtype, batch.targets.dtype] == [torch.int64, torch.bool, torch.int64]


def test_logits_at_the_kept_positions_are_in_this_order():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=13,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    model = transformers.LlamaForCausalLM(config)
    rows = [([5, 6, 7, 8, 9], 2), ([1, 2, 3], 1)]
    batch = pad_batch(rows, pad_id=0)
    with torch.no_grad():
        kept = model(input_ids=batch.input_ids).logits[batch.keep]
        alone = [model(input_ids=torch.tensor([ids])).logits[0, start - 1 : -1] for ids, start in rows]
    torch.testing.assert_close(kept, torch.cat(alone))
