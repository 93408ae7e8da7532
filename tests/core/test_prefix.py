from nlft_ray.core.prefix import common_prefix_length


def test_every_prompt_keeps_its_last_token():
    long = list(range(40))
    assert common_prefix_length([long, long]) == 39
    assert common_prefix_length([long, [*long[:20], 99, 98]]) == 20
    assert common_prefix_length([long, long[:21]]) == 20
    assert common_prefix_length([long[:10], long[:10]]) == 0, "too short to be worth it"
    assert common_prefix_length([]) == 0
