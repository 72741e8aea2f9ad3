"The package, as settings.ini describes it"
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup

here = Path(__file__).parent
config = ConfigParser()
config.read(here / 'settings.ini', encoding='utf-8')
ini = config['DEFAULT']
readme = here / 'README.md'

setup(
    name=ini['lib_name'], version=ini['version'], description=ini['description'], keywords=ini['keywords'],
    author=ini['author'], license='Apache-2.0', license_files=['LICENSE'],
    long_description=readme.read_text(encoding='utf-8') if readme.exists() else '',
    long_description_content_type='text/markdown',
    packages=[ini['lib_name']], package_data={ini['lib_name']: ['weights/**']},
    python_requires=f">={ini['min_python']}", install_requires=ini['requirements'].split(),
    extras_require={extra: ini[f'{extra}_requirements'].split() for extra in ('dev', 'demo', 'scale', 'track', 'small')},
    entry_points={'console_scripts': ini['console_scripts'].split()},
    zip_safe=False)
