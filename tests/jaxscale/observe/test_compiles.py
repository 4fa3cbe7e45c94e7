import jax
import numpy as np

from jaxscale.observe.compiles import CompileCounter


def new_program(x):
    return x * 3 + 1


def test_a_seen_shape_compiles_nothing_and_a_new_one_does():
    function = jax.jit(new_program)
    with CompileCounter() as counter:
        function(np.ones(3, np.float32))
        assert (counter.num_programs, counter.num_compiled) == (1, 1)
        function(np.zeros(3, np.float32))
        assert counter.num_programs == 1
        function(np.ones(4, np.float32))
        assert counter.num_programs == 2
    assert all("new_program" in name for name in counter.names)
    assert counter.compile_s > 0


def test_nothing_is_counted_before_or_after():
    function = jax.jit(new_program)
    function(np.ones(5, np.float32))
    with CompileCounter() as counter:
        function(np.ones(5, np.float32))
    function(np.ones(6, np.float32))
    assert (counter.num_programs, counter.compile_s) == (0, 0.0)


def test_counters_nest():
    function = jax.jit(new_program)
    with CompileCounter() as outer:
        function(np.ones(7, np.float32))
        with CompileCounter() as inner:
            function(np.ones(8, np.float32))
    assert (outer.num_programs, inner.num_programs) == (2, 1)


def test_a_counter_stops_counting_when_its_block_raises():
    counter = CompileCounter()
    try:
        with counter:
            raise RuntimeError
    except RuntimeError:
        pass
    jax.jit(new_program)(np.ones(9, np.float32))
    assert counter.num_programs == 0


def test_programs_from_the_persistent_cache_are_counted_apart(tmp_path):
    options = {
        "jax_compilation_cache_dir": str(tmp_path),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    from jax.experimental.compilation_cache import compilation_cache

    try:
        for name, value in options.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        with CompileCounter() as first:
            jax.jit(new_program)(np.ones(10, np.float32))
        jax.clear_caches()
        with CompileCounter() as second:
            jax.jit(new_program)(np.ones(10, np.float32))
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
    assert (first.num_compiled, first.num_cache_hits) == (1, 0)
    assert (second.num_programs, second.num_compiled, second.num_cache_hits) == (1, 0, 1)
