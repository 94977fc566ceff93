// What the pages say, in each language, and the choice of the language: `?lang=` in the address, else the browser's.
// An element with data-say gets its text from here; data-say-label, data-say-title and data-say-placeholder fill
// attributes. The label of a button is its tooltip, too, with the keys of data-keys. The pages load this before all else.

const LANGUAGES = { en: "en", zh: "zh-CN" };

export const WORDS = {
  // ---- Shared ----
  recorded: { en: "Recorded", zh: "录制中" },
  token: { en: "Token", zh: "令牌" },
  close: { en: "Close", zh: "关闭" },
  cancel: { en: "Cancel", zh: "取消" },
  search: { en: "Search", zh: "搜索" },
  noMatches: { en: "No matches", zh: "无匹配" },
  matchOf: { en: "{index} of {count}", zh: "第 {index} 个，共 {count} 个" },
  olderMatch: { en: "Older match", zh: "较早的匹配" },
  newerMatch: { en: "Newer match", zh: "较新的匹配" },
  closeSearch: { en: "Close the search bar", zh: "关闭搜索栏" },
  backToPlatform: { en: "Back to the platform", zh: "返回平台" },
  themeSystem: { en: "Colours: as the system has them", zh: "配色：跟随系统" },
  themeLight: { en: "Colours: light", zh: "配色：浅色" },
  themeDark: { en: "Colours: dark", zh: "配色：深色" },
  offline: { en: "This device is offline.", zh: "本设备没有网络连接。" },

  // ---- The terminal: bar and tools ----
  terminal: { en: "Terminal", zh: "终端" },
  starting: { en: "Starting", zh: "正在启动" },
  titleOfPod: { en: "{pod} – Terminal", zh: "{pod} – 终端" },
  pod: { en: "Pod", zh: "Pod" },
  namespace: { en: "namespace {name}", zh: "命名空间 {name}" },
  cluster: { en: "cluster {name}", zh: "集群 {name}" },
  recordedWhy: {
    en: "Everything this terminal shows is recorded and may be replayed by auditors.",
    zh: "此终端显示的全部内容都会被录制，审计人员可以回放。",
  },
  tools: { en: "Terminal tools", zh: "终端工具" },
  screenReader: { en: "Screen reader mode", zh: "屏幕阅读器模式" },
  copySelection: { en: "Copy the selection", zh: "复制所选内容" },
  copy: { en: "Copy", zh: "复制" },
  paste: { en: "Paste", zh: "粘贴" },
  endSession: { en: "End the session", zh: "结束会话" },
  smallerText: { en: "Smaller text", zh: "缩小文字" },
  largerText: { en: "Larger text", zh: "放大文字" },
  terminalRegion: {
    en: "Terminal. Ctrl+Shift+F opens the search bar and so leaves the terminal.",
    zh: "终端。按 Ctrl+Shift+F 打开搜索栏，从而离开终端。",
  },
  searchOutput: { en: "Search in the output", zh: "在输出中搜索" },
  keys: { en: "Keys", zh: "按键" },
  left: { en: "Left", zh: "左" },
  up: { en: "Up", zh: "上" },
  down: { en: "Down", zh: "下" },
  right: { en: "Right", zh: "右" },

  // ---- The terminal: its states ----
  connecting: { en: "Connecting", zh: "正在连接" },
  connected: { en: "Connected", zh: "已连接" },
  connectedAs: { en: "Connected as {user}", zh: "已以 {user} 的身份连接" },
  noAnswer: { en: "No answer from the server", zh: "服务器没有回应" },
  reconnecting: { en: "Reconnecting; typing is paused", zh: "正在重新连接，暂停输入" },
  secondsLeft: { en: ", {seconds} s left", zh: "，还剩 {seconds} 秒" },
  noToken: { en: "No token yet", zh: "还没有令牌" },
  ended: { en: "Session ended", zh: "会话已结束" },
  refused: { en: "Terminal not opened", zh: "终端未能打开" },
  lost: { en: "Connection lost", zh: "连接已断开" },
  taken: { en: "Continued elsewhere", zh: "已在别处继续" },
  takenWhy: {
    en: "This terminal goes on in another page or tab.",
    zh: "此终端已在另一个页面或标签页中继续。",
  },
  endedAway: { en: "The shell has ended while this page was away.", zh: "本页面离线期间，shell 已结束。" },
  endedByYou: { en: "You have ended this session.", zh: "您已结束此会话。" },
  exitCode: { en: "Exit code {code}.", zh: "退出码 {code}。" },
  unreachable: { en: "The server can no longer be reached.", zh: "已无法连接到服务器。" },
  noReason: { en: "The server gave no reason.", zh: "服务器没有说明原因。" },
  openAgain: {
    en: "To go on, open a terminal from your platform again.",
    zh: "如需继续，请从您的平台重新打开终端。",
  },
  endedReloaded: {
    en: "This session ended because the page was reloaded.",
    zh: "此会话因页面重新加载而结束。",
  },
  endedLeft: { en: "This session ended because the page was left.", zh: "此会话因离开页面而结束。" },
  tryAgain: { en: "Try again", zh: "重试" },
  continueHere: { en: "Continue here", zh: "在此继续" },
  reconnect: { en: "Reconnect", zh: "重新连接" },
  skipped: { en: " {size} not shown here; the recording has them ", zh: " 此处未显示 {size}，录像中有完整内容 " },

  // ---- The terminal: forms and toasts ----
  chooseContainer: { en: "Choose a container", zh: "选择容器" },
  chooseText: {
    en: "The pod {pod} has several. You have {seconds} seconds to choose.",
    zh: "Pod {pod} 有多个容器。请在 {seconds} 秒内选择。",
  },
  openTitle: { en: "Open a terminal", zh: "打开终端" },
  openText: {
    en: "Terminals are opened from your platform. If it gave you a token instead of a link, enter it here.",
    zh: "终端从您的平台打开。如果平台给您的是令牌而不是链接，请在此输入。",
  },
  open: { en: "Open the terminal", zh: "打开终端" },
  openFine: { en: "What the terminal shows is recorded.", zh: "终端显示的内容会被录制。" },
  pasteText: {
    en: "The browser does not let this page read the clipboard. Paste the text here, then send it.",
    zh: "浏览器不允许本页面读取剪贴板。请将文本粘贴到这里，然后发送。",
  },
  textToPaste: { en: "Text to paste", zh: "要粘贴的文本" },
  send: { en: "Send", zh: "发送" },
  switchTitle: { en: "End the running shell?", zh: "结束正在运行的 shell？" },
  switchText: {
    en:
      "This link opens another terminal here, which ends the shell that is running, with all that is not saved in it. " +
      "To have both, open the link in a new tab.",
    zh: "此链接会在这里打开另一个终端，并结束正在运行的 shell，其中未保存的内容都会丢失。如需同时保留，请在新标签页中打开链接。",
  },
  switchEnd: { en: "End it", zh: "结束它" },
  switchKeep: { en: "Keep the shell", zh: "保留 shell" },
  copied: { en: "Copied", zh: "已复制" },
  copyForbidden: { en: "The browser did not allow copying", zh: "浏览器不允许复制" },
  pressLong: { en: "Press long on a word to select it", zh: "长按一个词即可选中" },
  selectFirst: { en: "Select some text first", zh: "请先选择文本" },
  programCopied: { en: "The program copied text to your clipboard", zh: "程序已将文本复制到您的剪贴板" },
  tabKept: {
    en: "The browser keeps this tab open; close it yourself",
    zh: "浏览器没有关闭此标签页，请您自行关闭",
  },

  // ---- Why a terminal could not be reached ----
  serverSilent: { en: "The server does not answer.", zh: "服务器没有回应。" },
  serverUnreachable: { en: "The server could not be reached.", zh: "无法连接到服务器。" },
  signInFirst: {
    en: "Something in front of the server wants a sign-in first.",
    zh: "服务器前面的某个系统要求先登录。",
  },
  linkTooLong: {
    en: "The link is longer than the server, or a proxy in front of it, accepts (HTTP status {status}).",
    zh: "链接超过了服务器或其前面的代理所允许的长度（HTTP 状态 {status}）。",
  },
  noWebSocket: {
    en: "The server answers, but the WebSocket does not get through: a proxy or firewall may stop it.",
    zh: "服务器有回应，但 WebSocket 无法连通：可能被代理或防火墙阻止。",
  },
  badGateway: {
    en: "A proxy answers, but the server behind it does not (HTTP status {status}).",
    zh: "代理有回应，但它后面的服务器没有（HTTP 状态 {status}）。",
  },
  busy: {
    en: "The server is busy or being restarted (HTTP status {status}).",
    zh: "服务器繁忙或正在重启（HTTP 状态 {status}）。",
  },
  notHere: {
    en: "There is no jumpserver at this address (HTTP status {status}).",
    zh: "此地址没有 jumpserver（HTTP 状态 {status}）。",
  },
  notLetThrough: {
    en: "A proxy in front of the server did not let the terminal through (HTTP status {status}).",
    zh: "服务器前面的代理没有放行此终端（HTTP 状态 {status}）。",
  },
};

// What the server says comes in English, and goes into the ledger so. The sentences that are always the same are known
// here, with # for a number; what holds foreign words (of the cluster, of the platform) is shown as it came.
export const SAID = {
  zh: new Map(
    Object.entries({
      "the shell has ended": "shell 已结束",
      "the shell has ended with exit code #": "shell 已结束，退出码 #",
      "the browser no longer answers": "浏览器不再回应",
      "the browser sent a message of more than # MiB": "浏览器发送了超过 # MiB 的消息",
      "the browser closed the connection": "浏览器关闭了连接",
      "the user has ended the session": "用户已结束会话",
      "this session has ended": "此会话已结束",
      "this terminal goes on in another page": "此终端已在另一个页面中继续",
      "the server is shutting down": "服务器正在关闭",
      "the server is shutting down: this terminal ends in # minutes": "服务器正在关闭：此终端将在 # 分钟后结束",
      "the server is shutting down: this terminal ends in # seconds": "服务器正在关闭：此终端将在 # 秒后结束",
      "the recording of this session is at # % of its largest size, at which the session ends":
        "此会话的录像已达到大小上限的 # %，达到上限时会话将结束",
      "nothing was typed for a while: this terminal ends in # seconds": "已有一段时间没有输入：此终端将在 # 秒后结束",
      "the session has lasted as long as it may: this terminal ends in # seconds":
        "会话已达到允许的最长时间：此终端将在 # 秒后结束",
      "nothing was typed for as long as a session may be idle": "无输入的时间已达到会话允许的空闲上限",
      "the session has lasted as long as it may": "会话已达到允许的最长时间",
      "you have as many terminals open as you may; end one, then open this again from the platform":
        "您打开的终端已达上限，请先结束一个，再从平台重新打开",
      "this pod has as many terminals open as it may; open it again from the platform later":
        "此 Pod 打开的终端已达上限，请稍后从平台重新打开",
      "too many terminals were opened from your address just now; try again later":
        "刚才从您的地址打开的终端过多，请稍后重试",
      "the server has as many terminals open as it may; try again later": "服务器打开的终端已达上限，请稍后重试",
      "the session cannot be recorded, so it has ended": "会话无法录制，因此已结束",
      "the recording of this session is as large as it may be, so the session has ended":
        "此会话的录像已达到大小上限，因此会话已结束",
      "the disk is nearly full and this session fills it the fastest, so it has ended":
        "磁盘即将写满，而此会话占用增长最快，因此已结束",
      "this session cannot be written into the ledger, so it cannot begin; try again later":
        "此会话无法写入台账，因此不能开始，请稍后重试",
      "the ledger cannot be read or written now, and nothing goes on without it; try again later":
        "台账目前无法读写，没有它就不能继续，请稍后重试",
      "the server has as many answers under way as it may; try again later": "服务器正在处理的请求已达上限，请稍后重试",
      "this token is longer than # KiB, which is more than this server takes": "此令牌超过 # KiB，超出服务器允许的长度",
      "this recording cannot be fetched now; try again later": "目前无法取得此录像，请稍后重试",
      "the server could not check this with the platform; try again later": "服务器无法向平台核实，请稍后重试",
      "the server met an error of its own; its log has the details": "服务器自身出现错误，详情见其日志",
      "the server has as many files and connections open as it may; try again later":
        "服务器打开的文件和连接已达上限，请稍后重试",
      "the browser sent a message that is not understood": "浏览器发送了无法理解的消息",
      "there is no ssh_token; open the terminal from the platform": "缺少 ssh_token，请从平台打开终端",
      "this server has no way to check tokens yet; its operator must set [Token] secret or [Platform]":
        "此服务器尚无法校验令牌，需由运维人员设置 [Token] secret 或 [Platform]",
      "recordings are not open here; the server's operator must set [Token] secret":
        "此处未开放录像，需由服务器的运维人员设置 [Token] secret",
      "this link is not valid; open it again from the platform": "此链接无效，请从平台重新打开",
      "this link has expired; open it again from the platform": "此链接已过期，请从平台重新打开",
      "this link is not valid yet": "此链接尚未生效",
      "this link is not for a terminal": "此链接不是用于终端的",
      "this link is for another recording": "此链接用于另一份录像",
      "this link was already used; open the terminal again from the platform": "此链接已被使用，请从平台重新打开终端",
      "this page may not open a terminal here (see allowed_origins)":
        "此页面不允许在这里打开终端（参见 allowed_origins）",
    }),
  ),
};

export const LANGUAGE = chosenLanguage();

// The words for this key, with each {name} replaced.
export function say(key, values = {}) {
  return WORDS[key][LANGUAGE].replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

// What the server said, in the page's language where that is known: {text, lang}.
export function said(sentence) {
  const numbers = sentence.match(/\d+/g) ?? [];
  const known = SAID[LANGUAGE]?.get(sentence.replace(/\d+/g, "#"));
  return known ? own(known.replace(/#/g, () => numbers.shift())) : { text: sentence, lang: "en" };
}

// The same of what the page says itself.
export function own(text) {
  return { text, lang: LANGUAGES[LANGUAGE] };
}

function chosenLanguage() {
  const wanted = [new URLSearchParams(location.search).get("lang"), ...navigator.languages];
  const known = wanted.map((tag) => tag?.toLowerCase().split("-")[0]).find((tag) => Object.hasOwn(LANGUAGES, tag));
  return known ?? "en";
}

function fillIn() {
  document.documentElement.lang = LANGUAGES[LANGUAGE];
  const each = (name, fill) => document.querySelectorAll(`[data-${name}]`).forEach(fill);
  each("say", (part) => (part.textContent = say(part.dataset.say)));
  each("say-title", (part) => (part.title = say(part.dataset.sayTitle)));
  each("say-placeholder", (part) => (part.placeholder = say(part.dataset.sayPlaceholder)));
  each("say-label", (part) => {
    const { sayLabel, keys } = part.dataset;
    part.ariaLabel = say(sayLabel);
    if (part.tagName === "BUTTON") part.title = say(sayLabel) + (keys ? ` (${keys})` : "");
  });
}

fillIn();
