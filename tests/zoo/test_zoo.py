"""The table of the model zoo in the documentation."""

from helpers import REPOSITORY
from model_facts import EXPECTED

from kd_jax.models import MODELS
from kd_jax.zoo import BEGIN, END, entry, main

PAGE = REPOSITORY / 'docs' / 'zoo.md'
NOT_TORCHVISIONS = {'mobilenet_v1', 'imagenet_shufflenet_v1'}  # of the models for ImageNet


def test_the_documentation_has_the_table_with_the_published_counts(tmp_path, capsys):
    """All in one, because counting the whole zoo takes seconds."""
    text = PAGE.read_text(encoding='utf-8')
    before, begin, rest = text.partition(BEGIN)
    block, end, after = rest.partition(END)
    assert begin and end
    copy = tmp_path / 'zoo.md'
    copy.write_text(f'{before}{BEGIN}\nan older table\n{END}{after}', encoding='utf-8')
    main(['--write', str(copy)])
    assert copy.read_text(encoding='utf-8') == text, 'run python docs/tables.py zoo'
    assert capsys.readouterr().out == ''
    main([])
    assert capsys.readouterr().out.strip() == block.strip()

    head, line, *rows = [
        [cell.strip() for cell in row.strip('|').split('|')] for row in block.strip().split('\n')
    ]
    assert head == ['name', 'form', 'parameters', 'MACs (M)', 'weights import from']
    assert line == ['---', '---', '---:', '---:', '---']
    assert [row[0].strip('`') for row in rows] == list(MODELS)
    assert len(rows) == len(EXPECTED)
    found = {
        source: set()
        for source in ('torchvision', 'RepDistiller', 'mdistiller', 'pytorch-cifar-models')
    }
    for name, form, params, mega, sources in rows:
        name = name.strip('`')
        facts = EXPECTED[name]
        assert entry(name)[1:5] == (facts.size, facts.classes, facts.params, facts.macs), name
        assert form == (
            f'ImageNet, {facts.size} px' if facts.classes == 1000 else 'small images, 32 px'
        )
        assert int(params.replace(',', '')) == facts.params
        assert abs(float(mega.replace(',', '')) - facts.macs / 1e6) <= 0.05 + 1e-9, name
        for source in sources.split(', ') if sources != '—' else ():
            found[source].add(name)
    small = {name for name, facts in EXPECTED.items() if facts.size == 32}
    assert found['torchvision'] == EXPECTED.keys() - small - NOT_TORCHVISIONS
    assert found['RepDistiller'] == small - {'cnn'}
    assert found['mdistiller'] == found['RepDistiller'] | {'mobilenet_v1'}
    assert found['pytorch-cifar-models'] == {'resnet20', 'resnet32', 'resnet44', 'resnet56'}
