"The demo as a person uses it: Debian's Chromium, driven by playwright, on the page, in JupyterLab, and on a Space's folder"
import http.client, json, os, shutil, socket, subprocess, sys, time
from contextlib import contextmanager
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from urllib.parse import urlsplit
import numpy as np
import pytest
from packaging.requirements import Requirement
from PIL import Image
from facecontrol.demo import write_space
from facecontrol.faces import draw_face, sample_face
from facecontrol.loss import load_base, new_controlnet

pytest.importorskip('gradio')
playwright = pytest.importorskip('playwright.sync_api')
chromium = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
if not chromium: pytest.skip('no chromium on this machine: apt install chromium', allow_module_level=True)
from browse import jupyter_lab

root = Path(__file__).parents[1]
quiet = os.environ | {'HF_HUB_OFFLINE': '1', 'OMP_NUM_THREADS': '1', 'IN_TEST': '1', 'GRADIO_ANALYTICS_ENABLED': 'False', 'PYTHONPATH': str(root)}
patience = 300_000      # ms: two cores, and the other tests beside us


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

@contextmanager
def running(command, url, cwd, env=quiet):
    "A server in a process of its own, until the block ends"
    with open(cwd/'server.log', 'w+') as log:
        server = subprocess.Popen([str(word) for word in command], cwd=cwd, env=env, stdout=log, stderr=log)
        try:
            for _ in range(600):
                try:
                    if ask(url)[0] < 500: break
                except OSError: pass
                assert server.poll() is None, (cwd/'server.log').read_text()
                time.sleep(.5)
            else: raise AssertionError('the server never answered:\n' + (cwd/'server.log').read_text())
            yield url
        finally:
            server.terminate()
            try: server.wait(20)
            except subprocess.TimeoutExpired: server.kill()

def ask(url, method='GET', body=None, **headers):
    "Status and body of one request, with just these headers"
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
    try:
        connection.request(method, parts.path + ('?' + parts.query if parts.query else ''), body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally: connection.close()

def face(seed, size=256): return draw_face(sample_face(seed), size).image

def saved(image, path):
    image.save(path)
    return path

def film(image, path): # a camera that shows one picture: uncompressed YUV 4:2:0
    y, cb, cr = image.convert('YCbCr').split()
    planes = [np.asarray(plane) for plane in (y, *(c.resize((c.width // 2, c.height // 2)) for c in (cb, cr)))]
    frame = b'FRAME\n' + b''.join(plane.tobytes() for plane in planes)
    path.write_bytes(f'YUV4MPEG2 W{image.width} H{image.height} F10:1 Ip A1:1 C420jpeg\n'.encode() + 10 * frame)
    return path


@pytest.fixture(scope='module')
def work(tmp_path_factory):
    work = tmp_path_factory.mktemp('demo')
    new_controlnet(load_base('pocket').unet).save_pretrained(work/'controlnet')
    return work

@pytest.fixture(scope='module')
def page_url(work):
    "The page, with two steps a picture"
    port = free_port()
    script = f"from facecontrol.demo import serve; serve({str(work/'controlnet')!r}, steps=2, port={port}, device='cpu')"
    with running([sys.executable, '-c', script], f'http://127.0.0.1:{port}/', work) as url: yield url

@pytest.fixture(scope='module')
def browser(work):
    camera = film(face(7, 320), work/'camera.y4m')
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=['--no-sandbox', '--use-fake-ui-for-media-stream',
            '--use-fake-device-for-media-stream', f'--use-file-for-fake-video-capture={camera}'])
        yield browser
        browser.close()

@pytest.fixture
def visit(browser, request):
    "Open pages as visitors of their own; a failed test leaves what they saw"
    contexts = []
    def visit(url):
        contexts.append(browser.new_context(viewport=dict(width=1500, height=1300), permissions=['camera']))
        page = contexts[-1].new_page()
        page.set_default_timeout(patience)
        page.goto(url)
        return page
    yield visit
    shots = os.environ.get('SCREENSHOTS')    # a folder to look at
    for n, context in enumerate(contexts):
        if shots: context.pages[0].screenshot(path=f'{shots}/{request.node.name}-{n}.png', full_page=True)
        context.close()

def source(page, name): # of the picture that a part of the page shows
    return page.locator(f'#{name} img').first.get_attribute('src')

def other(page, name, than): # wait until that part shows another picture
    page.wait_for_function('([name, than]) => { const i = document.querySelector(`#${name} img`); return i && i.src && i.getAttribute("src") != than }', arg=[name, than])
    return source(page, name)

def upload(page, path): page.locator('#photo input[type=file]').first.set_input_files(path)

def draw(page):
    page.locator('#generate').click()
    page.wait_for_selector('#picture img')
    page.wait_for_function('document.querySelector("#error").innerText.match(/NME|No face/)')


def test_an_uploaded_face_becomes_a_mask_and_a_picture(page_url, visit, work):
    page = visit(page_url)
    first = source(page, 'mask')
    upload(page, saved(face(3), work/'face.png'))
    page.wait_for_selector('#said >> text=Points found')
    second = other(page, 'mask', first)
    page.locator('#yaw input[type=range]').focus()
    for _ in range(5): page.keyboard.press('ArrowRight')
    other(page, 'mask', second)
    draw(page)
    data = page.request.get(page.locator('#picture img').first.evaluate('i => i.src')).body()
    text = Image.open(BytesIO(data)).text
    assert text['Source'] == 'AI-generated' and text['prompt'] == 'a clown' and 'controlnet_sha256' in json.loads(text['settings'])
    assert 'generated by a program' in page.content() and 'Nothing you upload is kept' in page.content()

def test_the_camera_gives_a_face(page_url, visit):
    page = visit(page_url)
    first = source(page, 'mask')
    page.locator('#photo [aria-label="Capture from camera"]').click()
    page.locator('#photo').get_by_text('Access Webcam').click()
    page.wait_for_function('document.querySelector("#photo video").videoWidth > 0')
    page.locator('#photo .button-wrap button').first.click()
    page.wait_for_selector('#said >> text=Points found')
    other(page, 'mask', first)

@pytest.mark.parametrize('name, said', [('blank', 'got none that was found'), ('two', 'got 2'), ('huge', 'at most 89,478,485 pixels'), ('text', 'must be one of PNG')])
def test_a_bad_picture_costs_a_sentence(page_url, visit, work, name, said):
    path = work/f'{name}.png'
    if name == 'text': path.write_text('Dear reader, I am no picture.')
    elif name == 'huge': Image.new('1', (20_000, 20_000)).save(path)
    else:
        image = Image.new('RGB', (512, 256), 'white')
        if name == 'two': [image.paste(face(seed), (256 * n, 0)) for n, seed in enumerate((1, 2))]
        image.save(path)
    page = visit(page_url)
    before = source(page, 'mask')
    upload(page, path)
    page.wait_for_selector(f'#said >> text={said}')
    assert source(page, 'mask') == before
    upload_again = saved(face(3), work/'good.png')
    page.locator('#photo button[aria-label*="lear" i], #photo button[aria-label*="emove" i]').first.click()
    upload(page, upload_again)
    page.wait_for_selector('#said >> text=Points found')

def test_two_visitors_at_once_get_a_picture_each(page_url, visit):
    pages = [visit(page_url) for _ in range(2)]
    for page, prompt in zip(pages, ('a cat', 'a robot')): page.locator('#prompt textarea, #prompt input').first.fill(prompt)
    for page in pages: page.locator('#generate').click()
    for page, prompt in zip(pages, ('a cat', 'a robot')):
        page.wait_for_selector('#picture img')
        data = page.request.get(page.locator('#picture img').first.evaluate('i => i.src')).body()
        assert Image.open(BytesIO(data)).text['prompt'] == prompt

def test_ten_visitors_in_the_queue_and_none_is_lost(page_url):
    from gradio_client import Client
    clients = [Client(page_url, verbose=False, analytics_enabled=False) for _ in range(10)]
    jobs = [client.submit('a robot', n, 1, *[0] * 8, api_name='/draw') for n, client in enumerate(clients)]
    for n, job in enumerate(jobs):
        picture, _, verdict = job.result(timeout=240)
        assert Image.open(picture).text['seed'] == str(n) and verdict

def test_files_foreign_pages_and_floods_are_refused(page_url, work):
    for path in ('gradio_api/file=/etc/passwd', 'file=/etc/passwd', 'gradio_api/file=../../../etc/passwd', 'gradio_api/file=file:///etc/passwd',
                 'static/../../../../etc/passwd', 'assets/%2e%2e/%2e%2e/etc/passwd', f'gradio_api/file={work}/server.log'):
        status, body = ask(page_url + path)
        assert status >= 400 and b'root:' not in body, path
    own = urlsplit(page_url).netloc
    assert ask(page_url, Origin=page_url[:-1])[0] == 200
    assert ask(page_url, Origin='https://example.org')[0] == ask(page_url, Host='example.org')[0] == 403
    assert ask(page_url + 'gradio_api/queue/join', 'POST', b'{}', Origin='null', Host=own)[0] == 403
    form = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    status, body = ask(page_url + 'gradio_api/upload', 'POST', form, **{'Content-Type': 'multipart/form-data; boundary=x', 'Content-Length': str(50 * 2**20)})
    assert status == 413 and b'at most' in body
    call = dict(data=[dict(path='/etc/passwd', meta=dict(_type='gradio.FileData'))], fn_index=0, session_hash='x')
    status, body = ask(page_url + 'gradio_api/run/predict', 'POST', json.dumps(call), **{'Content-Type': 'application/json'})
    assert b'root:' not in body and b'begin with' not in body


def test_the_notebook_in_jupyterlab(visit, work):
    folder, port = work/'lab', free_port()
    (folder/'nbs').mkdir(parents=True)
    shutil.copy(root/'nbs/10_demo.ipynb', folder/'nbs')
    command, homes = jupyter_lab(folder, folder/'nbs', port)
    with running(command, f'http://127.0.0.1:{port}/lab', folder, quiet | homes) as url:
        page = visit(f'{url}/tree/10_demo.ipynb')
        page.get_by_text('Python 3 (ipykernel) | Idle').wait_for()
        page.get_by_role('menuitem', name='Run', exact=True).click()
        page.get_by_text('Run All Cells', exact=True).click()
        page.wait_for_selector('.facecontrol-panel', state='attached')
        panel = page.locator('.facecontrol-panel').first
        panel.scroll_into_view_if_needed()
        pictures = panel.locator('img')
        page.wait_for_function('document.querySelectorAll(".facecontrol-panel img")[1]?.naturalWidth > 0')   # the page's own cells have drawn
        def wait(n, than):
            page.wait_for_function('([n, than]) => document.querySelectorAll(".facecontrol-panel img")[n].src != than', arg=[n, than])
            return pictures.nth(n).get_attribute('src')
        mask, picture = (pictures.nth(n).get_attribute('src') for n in range(2))
        panel.locator('.noUi-handle').nth(3).focus()      # smile
        for _ in range(8): page.keyboard.press('ArrowRight')
        mask = wait(0, mask)
        panel.locator('input[type=number]').first.fill('5')
        page.keyboard.press('Enter')
        panel.get_by_role('button', name='Generate').click()
        wait(1, picture)
        panel.get_by_role('button', name='Camera').click()
        panel.get_by_text('Points found').wait_for()
        wait(0, mask)


def test_the_space_starts_from_its_own_folder(visit, work):
    "With its own copy of the package; that its requirements install is tried once by hand, for it takes gigabytes"
    space, port = write_space(work/'space', work/'controlnet'), free_port()
    wanted = [Requirement(line) for line in (space/'requirements.txt').read_text().split('\n') if line]
    assert all(r.specifier.contains(version(r.name), prereleases=True) for r in wanted) and {'gradio', 'torch', 'diffusers'} <= {r.name for r in wanted}
    env = {name: value for name, value in quiet.items() if name != 'PYTHONPATH'} | {'GRADIO_SERVER_PORT': str(port), 'GRADIO_TEMP_DIR': str(work/'tmp')}
    whose = subprocess.run([sys.executable, '-c', 'import facecontrol; print(facecontrol.__file__)'], cwd=space, env=env, capture_output=True, text=True)
    assert whose.stdout.startswith(str(space))
    with running([sys.executable, 'app.py'], f'http://127.0.0.1:{port}/', space, env) as url:
        page = visit(url)
        page.wait_for_selector('#mask img')
        page.wait_for_function('document.images.length >= 4 && [...document.images].every(image => image.naturalWidth > 0)')      # mask and examples
