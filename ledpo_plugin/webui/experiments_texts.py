"""Texts of the tab "Experiments" in LlamaBoard's five languages: labels of its elements, and words of what it shows."""

from collections.abc import Mapping
from typing import Any

LANGUAGES = ("en", "ru", "zh", "ko", "ja")


def _labels(en: str, ru: str, zh: str, ko: str, ja: str) -> dict[str, dict[str, str]]:
    return {lang: {"label": text} for lang, text in zip(LANGUAGES, (en, ru, zh, ko, ja), strict=True)}


def _values(en: str, ru: str, zh: str, ko: str, ja: str) -> dict[str, dict[str, str]]:
    return {lang: {"value": text} for lang, text in zip(LANGUAGES, (en, ru, zh, ko, ja), strict=True)}


def _with_info(labels: dict[str, dict[str, str]], en: str, ru: str, zh: str, ko: str, ja: str) -> dict[str, Any]:
    infos = zip(LANGUAGES, (en, ru, zh, ko, ja), strict=True)
    return {lang: {**labels[lang], "info": info} for lang, info in infos}


# Element name -> language -> properties, as in LlamaBoard's LOCALES. All names start with exp_, so that none is stock.
EXPERIMENT_LOCALES: Mapping[str, Mapping[str, Mapping[str, str]]] = {
    "exp_folder": _with_info(
        _labels("Folder of experiments", "Папка экспериментов", "实验文件夹", "실험 폴더", "実験フォルダー"),
        "Experiments are folders with an experiment.yaml, in this folder or below it.",
        "Эксперимент — папка с файлом experiment.yaml, в этой папке или ниже.",
        "实验是含有 experiment.yaml 的文件夹，位于此文件夹或其下级。",
        "실험은 experiment.yaml이 있는 폴더이며, 이 폴더나 그 아래에서 찾습니다.",
        "実験は experiment.yaml を含むフォルダーで、このフォルダーとその下から探します。",
    ),
    "exp_find_btn": _values("Find", "Найти", "查找", "찾기", "検索"),
    "exp_name": _labels("Experiment", "Эксперимент", "实验", "실험", "実験"),
    "exp_profile": _with_info(
        _labels("Profile", "Профиль", "配置档", "프로필", "プロファイル"),
        "Which budget, seeds and resources of experiment.yaml.",
        "Какие бюджет, сиды и ресурсы из experiment.yaml.",
        "使用 experiment.yaml 中的哪组预算、随机种子和资源。",
        "experiment.yaml의 어떤 예산, 시드, 자원을 쓸지 정합니다.",
        "experiment.yaml のどの予算、シード、リソースを使うか。",
    ),
    "exp_start_btn": _values("Start", "Запустить", "开始", "시작", "開始"),
    "exp_stop_btn": _values("Stop", "Остановить", "停止", "중지", "停止"),
    "exp_resume_btn": _values("Resume", "Продолжить", "继续", "이어서 실행", "再開"),
    "exp_message": _labels("Message", "Сообщение", "消息", "메시지", "メッセージ"),
    "exp_log": _labels("Log of ledpo run", "Журнал ledpo run", "ledpo run 日志", "ledpo run 로그", "ledpo run のログ"),
    "exp_report_btn": _values("Show the report", "Показать отчёт", "显示报告", "보고서 보기", "レポートを表示"),
    "exp_report_close_btn": _values("Close the report", "Закрыть отчёт", "关闭报告", "보고서 닫기", "レポートを閉じる"),
    "exp_beta_tab": _labels(
        "beta(x) of a prompt", "beta(x) для запроса", "提示的 beta(x)", "프롬프트의 beta(x)", "プロンプトの beta(x)"
    ),
    "exp_beta_run": _with_info(
        _labels("Trained run", "Обученный запуск", "已训练的运行", "학습된 실행", "学習済みの実行"),
        "A run of the experiment, or the output folder of any LEDPO run.",
        "Запуск эксперимента или выходная папка любого запуска LEDPO.",
        "实验中的一次运行，或任意 LEDPO 运行的输出文件夹。",
        "실험의 실행 하나, 또는 아무 LEDPO 실행의 출력 폴더.",
        "実験の実行、または任意の LEDPO 実行の出力フォルダー。",
    ),
    "exp_beta_prompt": _labels("Prompt", "Запрос", "提示", "프롬프트", "プロンプト"),
    "exp_beta_btn": _values("Compute beta(x)", "Вычислить beta(x)", "计算 beta(x)", "beta(x) 계산", "beta(x) を計算"),
    "exp_beta_result": _labels("beta(x)", "beta(x)", "beta(x)", "beta(x)", "beta(x)"),
}


def _words(en: str, ru: str, zh: str, ko: str, ja: str) -> dict[str, str]:
    return dict(zip(LANGUAGES, (en, ru, zh, ko, ja), strict=True))


# Word -> language -> text. Errors of the engine are not here: they are the ones that `ledpo run` prints.
WORDS: Mapping[str, Mapping[str, str]] = {
    # phases of a run, and of an experiment
    "pending": _words("waiting", "ожидает", "等待中", "대기 중", "待機中"),
    "training": _words("training", "обучение", "训练中", "학습 중", "学習中"),
    "measuring": _words("measuring", "измерение", "评测中", "측정 중", "測定中"),
    "finished": _words("finished", "завершён", "已完成", "완료", "完了"),
    "failed": _words("failed", "ошибка", "失败", "실패", "失敗"),
    "interrupted": _words("interrupted", "прерван", "已中断", "중단됨", "中断"),
    "running": _words("running", "выполняется", "运行中", "실행 중", "実行中"),
    "not_started": _words("not started", "не запущен", "未开始", "시작 안 함", "未開始"),
    "unreadable": _words("cannot be read", "не читается", "无法读取", "읽을 수 없음", "読み込めません"),
    # headings of tables
    "experiment": _words("Experiment", "Эксперимент", "实验", "실험", "実験"),
    "title": _words("Title", "Название", "标题", "제목", "タイトル"),
    "profiles": _words("Profiles", "Профили", "配置档", "프로필", "プロファイル"),
    "variant": _words("Variant", "Вариант", "变体", "변형", "バリアント"),
    "seed": _words("Seed", "Сид", "种子", "시드", "シード"),
    "state": _words("State", "Состояние", "状态", "상태", "状態"),
    "detail": _words("Detail", "Подробности", "详情", "세부 정보", "詳細"),
    "study": _words("study", "исследование", "研究", "연구", "研究"),
    # sentences; what stands in {} is text
    "runs_finished": _words(
        "{finished} of {all} finished",
        "завершено {finished} из {all}",
        "已完成 {finished} / {all}",
        "{all}개 중 {finished}개 완료",
        "{all} 件中 {finished} 件完了",
    ),
    "runs_failed": _words(
        "{failed} failed", "с ошибкой: {failed}", "失败 {failed}", "{failed}개 실패", "{failed} 件失敗"
    ),
    "left": _words("about {time} left", "осталось около {time}", "约剩 {time}", "약 {time} 남음", "残り約 {time}"),
    "planned": _words(
        "{variants} variants, {seeds} seeds each: {runs} runs",
        "вариантов: {variants}, сидов: {seeds}; запусков: {runs}",
        "{variants} 个变体，每个 {seeds} 个种子：共 {runs} 次运行",
        "변형 {variants}개, 시드 각 {seeds}개: 실행 {runs}회",
        "{variants} バリアント × {seeds} シード：{runs} 回の実行",
    ),
    "step": _words("step {step}", "шаг {step}", "第 {step} 步", "{step}단계", "ステップ {step}"),
    "step_of": _words(
        "step {step} of {total}",
        "шаг {step} из {total}",
        "第 {step} / {total} 步",
        "{total}단계 중 {step}",
        "ステップ {step} / {total}",
    ),
    "process": _words(
        "process {pid} on {host}",
        "процесс {pid} на {host}",
        "{host} 上的进程 {pid}",
        "{host}의 프로세스 {pid}",
        "{host} のプロセス {pid}",
    ),
    "goes_on": _words(
        "Finished runs are kept. Resume goes on with the others.",
        "Завершённые запуски сохранены. «Продолжить» выполнит остальные.",
        "已完成的运行会保留，点击“继续”执行其余部分。",
        "완료된 실행은 보존됩니다. ‘이어서 실행’으로 나머지를 계속합니다.",
        "完了した実行は保持されます。「再開」で残りを続けます。",
    ),
    "ended_early": _words(
        "ledpo run ended before any run began; its log says why.",
        "ledpo run завершился до начала запусков; причина — в журнале.",
        "ledpo run 在任何运行开始之前就结束了，原因见日志。",
        "ledpo run이 실행을 시작하기 전에 끝났습니다. 이유는 로그에 있습니다.",
        "ledpo run は実行を始める前に終了しました。理由はログにあります。",
    ),
    "none_found": _words(
        "There is no experiment in {folder}: no folder with an experiment.yaml.",
        "В {folder} нет экспериментов: нет папки с experiment.yaml.",
        "{folder} 中没有实验：没有含 experiment.yaml 的文件夹。",
        "{folder}에 실험이 없습니다. experiment.yaml이 있는 폴더가 없습니다.",
        "{folder} に実験がありません（experiment.yaml のあるフォルダーがありません）。",
    ),
    "choose": _words(
        "Choose an experiment and a profile first.",
        "Сначала выберите эксперимент и профиль.",
        "请先选择实验和配置档。",
        "먼저 실험과 프로필을 선택하십시오.",
        "先に実験とプロファイルを選択してください。",
    ),
    "started": _words(
        "Started as process {pid}. It goes on when this page or the web UI is closed.",
        "Запущено, процесс {pid}. Работа продолжится, даже если закрыть страницу или веб-интерфейс.",
        "已启动，进程 {pid}。关闭此页面或 Web UI 后仍会继续。",
        "프로세스 {pid}로 시작했습니다. 이 페이지나 웹 UI를 닫아도 계속됩니다.",
        "プロセス {pid} として開始しました。ページや Web UI を閉じても続きます。",
    ),
    "stopped": _words(
        "Stopped, with everything that it had started. Finished runs are kept.",
        "Остановлено вместе со всеми дочерними процессами. Завершённые запуски сохранены.",
        "已停止，包括其启动的所有进程。已完成的运行会保留。",
        "하위 프로세스까지 모두 중지했습니다. 완료된 실행은 보존됩니다.",
        "子プロセスを含めて停止しました。完了した実行は保持されます。",
    ),
    "nothing_to_stop": _words(
        "Nothing is at work here.",
        "Здесь ничего не выполняется.",
        "当前没有正在运行的任务。",
        "실행 중인 작업이 없습니다.",
        "実行中のものはありません。",
    ),
    "no_report": _words(
        "There is no report yet: it is written when the runs are through.",
        "Отчёта пока нет: он создаётся после завершения запусков.",
        "还没有报告：运行全部结束后才会生成。",
        "아직 보고서가 없습니다. 실행이 모두 끝나면 작성됩니다.",
        "レポートはまだありません。実行がすべて終わると作成されます。",
    ),
    "report_of": _words(
        "{path}, written {time}",
        "{path}, создан {time}",
        "{path}，生成于 {time}",
        "{path}, 작성 {time}",
        "{path}、作成 {time}",
    ),
    "report_too_large": _words(
        "{path} has {size} MB, which is too much to show here. Open the file in a browser.",
        "{path} занимает {size} МБ — слишком много для показа здесь. Откройте файл в браузере.",
        "{path} 大小为 {size} MB，无法在此显示。请用浏览器打开该文件。",
        "{path}의 크기는 {size} MB로 여기에 표시하기에 너무 큽니다. 브라우저에서 파일을 여십시오.",
        "{path} は {size} MB あり、ここには表示できません。ブラウザーでファイルを開いてください。",
    ),
    "no_run": _words(
        "Choose a trained run first.",
        "Сначала выберите обученный запуск.",
        "请先选择已训练的运行。",
        "먼저 학습된 실행을 선택하십시오.",
        "先に学習済みの実行を選択してください。",
    ),
    "no_prompt": _words(
        "Type a prompt first.",
        "Сначала введите запрос.",
        "请先输入提示。",
        "먼저 프롬프트를 입력하십시오.",
        "先にプロンプトを入力してください。",
    ),
    "beta": _words(
        "{beta} ({tokens} tokens of prompt)",
        "{beta} (токенов в запросе: {tokens})",
        "{beta}（提示共 {tokens} 个 token）",
        "{beta} (프롬프트 {tokens}토큰)",
        "{beta}（プロンプト {tokens} トークン）",
    ),
    "beta_constant": _words(
        "{beta}, the same for every prompt",
        "{beta}, одинаково для всех запросов",
        "{beta}，对所有提示相同",
        "{beta}, 모든 프롬프트에 동일",
        "{beta}（すべてのプロンプトで同じ）",
    ),
    "too_long": _words(
        "It took longer than {seconds} s and was stopped.",
        "Вычисление заняло больше {seconds} с и было остановлено.",
        "超过 {seconds} 秒，已停止。",
        "{seconds}초를 넘겨 중지했습니다.",
        "{seconds} 秒を超えたため停止しました。",
    ),
}


def say(word: str, lang: str | None, **facts: Any) -> str:
    """Return a word or sentence in a language of LlamaBoard; English where none is chosen yet."""
    text = WORDS[word][lang if lang in LANGUAGES else "en"]
    return text.format(**facts) if facts else text
