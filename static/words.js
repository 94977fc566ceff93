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

  // ---- The player: bar and controls ----
  recording: { en: "Recording", zh: "录像" },
  titleOfRecording: { en: "{title} – Recording", zh: "{title} – 录像" },
  remarks: { en: "Remarks", zh: "说明" },
  chapters: { en: "Chapters", zh: "章节" },
  closeChapters: { en: "Close the chapters", zh: "关闭章节列表" },
  download: { en: "Download", zh: "下载" },
  playRecording: { en: "Play the recording", zh: "播放录像" },
  moment: { en: "Moment", zh: "时刻" },
  play: { en: "Play", zh: "播放" },
  pause: { en: "Pause", zh: "暂停" },
  spaceKey: { en: "Space", zh: "空格键" },
  previousChapter: { en: "Previous chapter", zh: "上一章节" },
  nextChapter: { en: "Next chapter", zh: "下一章节" },
  speed: { en: "Speed", zh: "速度" },
  pauses: { en: "Pauses", zh: "停顿" },
  pausesFull: { en: "In full", zh: "完整保留" },
  pauses1: { en: "At most 1 s", zh: "最多 1 秒" },
  pauses2: { en: "At most 2 s", zh: "最多 2 秒" },
  pauses5: { en: "At most 5 s", zh: "最多 5 秒" },
  textSize: { en: "Size of the text", zh: "文字大小" },
  fit: { en: "Fit", zh: "适应" },
  copyLink: { en: "Copy link to this moment", zh: "复制此时刻的链接" },
  fullscreen: { en: "Full screen", zh: "全屏" },
  elapsedOf: { en: "{elapsed} of {whole}", zh: "{elapsed} / {whole}" },
  withPauses: { en: "{shown} ({whole} with all pauses)", zh: "{shown}（含全部停顿为 {whole}）" },
  linkCopied: {
    en: "Copied. The link holds no token: who opens it needs one of their own.",
    zh: "已复制。链接中没有令牌，打开它的人需要有自己的令牌。",
  },
  linkNotCopied: {
    en: "The browser did not allow copying. The link, which holds no token, is in the address bar.",
    zh: "浏览器不允许复制。链接在地址栏中，其中没有令牌。",
  },

  // ---- The player: what it searches for ----
  searchShown: { en: "Search in what was shown", zh: "在显示过的内容中搜索" },
  previousMatch: { en: "Previous match", zh: "上一个匹配" },
  nextMatch: { en: "Next match", zh: "下一个匹配" },
  searching: { en: "Searching", zh: "正在搜索" },
  searchingPart: { en: "Searching, {part} %", zh: "正在搜索，{part} %" },
  notFound: { en: "Not found", zh: "未找到" },
  found: { en: "{count} found", zh: "找到 {count} 处" },
  foundOrMore: { en: "{count} or more found", zh: "找到 {count} 处以上" },
  hitOfMore: { en: "{index} of {count} or more", zh: "第 {index} 处，共 {count} 处以上" },

  // ---- The player: its keys ----
  keyPlay: { en: "play or pause", zh: "播放或暂停" },
  keySeek: { en: "5 seconds back or on; with Shift a tenth of the whole", zh: "后退或前进 5 秒；按住 Shift 为全长的十分之一" },
  keyTenths: { en: "to the start, a tenth, two tenths …", zh: "到开头、十分之一、十分之二……" },
  keyStep: { en: "one picture back or on", zh: "后退或前进一帧" },
  keyChapters: { en: "previous or next chapter of those that are listed", zh: "所列章节中的上一个或下一个" },
  keySearch: { en: "search in what was shown", zh: "在显示过的内容中搜索" },
  keyMatch: { en: "in the search: next match; with Shift the previous one", zh: "搜索时：下一个匹配；按住 Shift 为上一个" },
  keyList: { en: "in the chapters: choose one; Enter jumps", zh: "在章节中：选择；按 Enter 跳转" },
  keyFullscreen: { en: "full screen", zh: "全屏" },
  keyKeystrokes: { en: "show or hide recorded keystrokes", zh: "显示或隐藏录下的按键" },
  keyEscape: { en: "close the search or the chapters", zh: "关闭搜索或章节列表" },
  keyHelp: { en: "these keys", zh: "本列表" },

  // ---- The player: its chapters ----
  filter: { en: "Filter", zh: "筛选" },
  filterChapters: { en: "Filter the chapters", zh: "筛选章节" },
  failed: { en: "Failed", zh: "失败" },
  failedOnly: { en: "Only commands that failed", zh: "只看失败的命令" },
  noChapters: { en: "No chapters", zh: "没有章节" },
  oneChapter: { en: "1 chapter", zh: "1 个章节" },
  someChapters: { en: "{count} chapters", zh: "{count} 个章节" },
  failedOfAll: { en: "{all}, {failed} failed", zh: "{all}，{failed} 个失败" },
  someOfAll: { en: "{count} of {all}", zh: "{all}中的 {count} 个" },
  noneOfAll: { en: "None of {all}", zh: "{all}中没有符合的" },
  exit: { en: "exit {code}", zh: "退出码 {code}" },

  // ---- The player: what is wrong ----
  loading: { en: "Loading the recording", zh: "正在加载录像" },
  arrivedOf: { en: "{received} of {total}", zh: "{received}，共 {total}" },
  waiting: { en: "Waiting for the server.", zh: "正在等待服务器。" },
  incomplete: { en: "Incomplete", zh: "不完整" },
  incompleteRunning: {
    en: "The session is still running: load this page again to see more of it.",
    zh: "会话仍在进行：重新加载本页可看到更多内容。",
  },
  incompleteCut: { en: "The recording was cut off: the end of the session is missing.", zh: "录像被截断：缺少会话的结尾。" },
  sizeRemark: {
    en: "The terminal had a size of {recorded}. It is shown as {shown}, so some lines may stand elsewhere.",
    zh: "终端的大小为 {recorded}，这里按 {shown} 显示，部分行的位置可能不同。",
  },
  momentRemark: {
    en: "The moment in this link cannot be read, so the recording is at its start. It is written as t=83.5 or t=1h2m3s.",
    zh: "无法识别此链接中的时刻，因此录像停在开头。时刻的写法为 t=83.5 或 t=1h2m3s。",
  },
  notReached: { en: "The server could not be reached", zh: "无法连接到服务器" },
  notReachedWhy: {
    en: "Check the network connection, then load this page again.",
    zh: "请检查网络连接，然后重新加载本页。",
  },
  needsToken: { en: "This recording needs a token", zh: "此录像需要令牌" },
  needsTokenWhy: {
    en: "Links to a moment hold none. Open a recording from where yours are listed and this link in the same tab, or enter a token.",
    zh: "指向时刻的链接中没有令牌。请先从您的录像列表打开一份录像，再在同一标签页中打开此链接，或在此输入令牌。",
  },
  tokenOrLink: { en: "Token, or a link with one", zh: "令牌，或带有令牌的链接" },
  mayNotPlay: { en: "You may not play this recording", zh: "您不能播放此录像" },
  mayHaveExpired: { en: "The link may have expired.", zh: "链接可能已过期。" },
  openRecordingAgain: { en: "Open the recording again from where you found it.", zh: "请从原处重新打开录像。" },
  noRecording: { en: "There is no such recording", zh: "没有这份录像" },
  noRecordingWhy: {
    en: "{name} was not found. It may have been removed, or the link is incomplete.",
    zh: "未找到 {name}。它可能已被删除，或者链接不完整。",
  },
  notSent: { en: "The server could not send the recording", zh: "服务器无法发送录像" },
  answeredWith: { en: "It answered with status {status}.", zh: "它返回的状态为 {status}。" },
  brokeOff: { en: "The download broke off", zh: "下载中断" },
  brokeOffWhy: {
    en: "{received} had arrived. Load this page again to retry.",
    zh: "已收到 {received}。重新加载本页可重试。",
  },
  damaged: { en: "The recording is damaged", zh: "录像已损坏" },
  damagedWhy: {
    en: "Line {line} cannot be read. The file itself can be downloaded.",
    zh: "第 {line} 行无法读取。文件本身可以下载。",
  },
  nothingPrinted: { en: "Nothing was printed", zh: "没有任何输出" },
  nothingPrintedWhy: {
    en: "The session was recorded, but it ended before anything appeared in its terminal.",
    zh: "会话已录制，但在终端出现任何内容之前就结束了。",
  },
  noAsciicast: { en: "This is not a recording", zh: "这不是录像" },
  noAsciicastWhy: {
    en: "The file does not begin like an asciicast. It can be downloaded as it is.",
    zh: "文件的开头不是 asciicast 格式。可以原样下载。",
  },
  noPlayer: { en: "The player could not be loaded", zh: "无法加载播放器" },
  noPlayerWhy: {
    en: "Its script did not arrive, or this browser cannot run it. Load the page again, or download the file.",
    zh: "播放器的脚本没有送达，或者此浏览器无法运行它。请重新加载本页，或下载文件。",
  },
  cannotPlay: { en: "The recording cannot be played", zh: "无法播放此录像" },
  cannotPlayWhy: {
    en: "The player failed: the recording is too large for this browser or not in a form it can show. The file itself can be downloaded.",
    zh: "播放器出错：录像对此浏览器来说过大，或其格式无法显示。文件本身可以下载。",
  },
  noName: { en: "No recording was named", zh: "没有指明录像" },
  noNameWhy: {
    en: "The link is incomplete: it needs filename=… and a token.",
    zh: "链接不完整：需要 filename=… 和令牌。",
  },

  // ---- The live view ----
  session: { en: "Session", zh: "会话" },
  titleOfLive: { en: "{title} – Live", zh: "{title} – 实时" },
  liveConnecting: { en: "Connecting", zh: "正在连接" },
  live: { en: "Live", zh: "实时" },
  liveLost: { en: "Reconnecting", zh: "正在重新连接" },
  liveEnded: { en: "Ended", zh: "已结束" },
  liveRefused: { en: "Not live", zh: "非实时" },
  hasEnded: { en: "This session has ended", zh: "此会话已结束" },
  hasEndedWhy: {
    en: "There is nothing to watch any more, but its recording can be played.",
    zh: "已没有可观看的内容，但可以播放它的录像。",
  },
  noSessionName: { en: "No session was named", zh: "没有指明会话" },
  mayNotWatch: { en: "You may not watch this session", zh: "您不能观看此会话" },
  watchExpired: {
    en: "The link may have expired. Open it again from where you found it.",
    zh: "链接可能已过期。请从原处重新打开。",
  },
  noSession: { en: "There is no such session", zh: "没有这个会话" },
  noSessionWhy: {
    en: "Its recording was not found. It may have been removed, or the link is incomplete.",
    zh: "未找到它的录像。它可能已被删除，或者链接不完整。",
  },
  cannotWatch: { en: "The session cannot be watched now", zh: "目前无法观看此会话" },
  serverAnswered: { en: "The server answered with status {status}.", zh: "服务器返回的状态为 {status}。" },
  lastSeen: {
    en: "The session has ended. This is the last that was seen.",
    zh: "会话已结束。这是最后看到的画面。",
  },
  connectionLost: { en: "The connection is lost. Trying again.", zh: "连接已断开，正在重试。" },
  tryingAgain: { en: "{why}. Trying again.", zh: "{why}，正在重试。" },
  nothingFor: { en: "nothing printed for {time}", zh: "已有 {time} 没有输出" },

  // ---- The sessions ----
  sessions: { en: "Sessions", zh: "会话" },
  commands: { en: "Commands", zh: "命令" },
  whatIsListed: { en: "What is listed", zh: "列出的内容" },
  filters: { en: "Filters", zh: "筛选条件" },
  user: { en: "User", zh: "用户" },
  namespaceOf: { en: "Namespace", zh: "命名空间" },
  since: { en: "From", zh: "从" },
  until: { en: "To", zh: "到" },
  clear: { en: "Clear", zh: "清除" },
  searchSessions: { en: "Search user, pod, address, reason…", zh: "搜索用户、Pod、地址、原因……" },
  searchCommands: { en: "Search commands…", zh: "搜索命令……" },
  openSessions: { en: "Open", zh: "进行中" },
  endedSessions: { en: "Ended", zh: "已结束" },
  nobody: { en: "Nobody has a terminal open.", zh: "没有人打开终端。" },
  noneEnded: { en: "No session that has ended matches.", zh: "没有符合条件的已结束会话。" },
  noCommand: { en: "No command matches.", zh: "没有符合条件的命令。" },
  more: { en: "Show more", zh: "显示更多" },
  endDots: { en: "End…", zh: "结束……" },
  watch: { en: "Watch", zh: "观看" },
  replay: { en: "Replay", zh: "回放" },
  hintWatch: { en: ", watch", zh: "，观看" },
  hintReplay: { en: ", replay", zh: "，回放" },
  hintReplayHere: { en: ", replay from here", zh: "，从此处回放" },
  sinceTime: { en: "since {time}", zh: "自 {time}" },
  recordedBytes: { en: "{size} recorded", zh: "已录制 {size}" },
  endedState: { en: "ended", zh: "已结束" },
  ending: { en: "ending", zh: "正在结束" },
  waitsForBrowser: { en: "waits for its browser", zh: "等待浏览器返回" },
  onAnother: { en: "on another server", zh: "在另一台服务器上" },
  typing: { en: "typing", zh: "正在输入" },
  idleFor: { en: "idle {time}", zh: "空闲 {time}" },
  noUser: { en: "(no name)", zh: "（无名）" },
  somebody: { en: "Somebody", zh: "某人" },
  endTitle: { en: "End this session?", zh: "结束此会话？" },
  endText: { en: "{user} in {place}, since {time}.", zh: "{user}，位于 {place}，自 {time}。" },
  reason: { en: "Reason", zh: "原因" },
  endFine: {
    en: "The user sees who ended it, and this reason. Both stand in the recording and in the ledger.",
    zh: "用户会看到是谁结束了会话以及此原因。两者都会写入录像和台账。",
  },
  keepIt: { en: "Keep it", zh: "保留" },
  endIt: { en: "End the session", zh: "结束会话" },
  downloading: { en: "Downloading {name}…", zh: "正在下载 {name}……" },
  downloadFailed: { en: "{name}: {why}", zh: "{name}：{why}" },
  pageTries: {
    en: "Check the network connection; this page tries again by itself.",
    zh: "请检查网络连接，本页会自动重试。",
  },
  cannotSearch: { en: "This cannot be searched for", zh: "无法这样搜索" },
  mayNotSee: { en: "You may not see this", zh: "您不能查看此内容" },
  couldNotAnswer: { en: "The server could not answer", zh: "服务器无法回应" },
  notFromHere: {
    en: "What came is not from a jumpserver; a proxy may stand before it.",
    zh: "收到的内容不是来自 jumpserver，它前面可能有代理。",
  },
  triesAgain: { en: "{why}. {text}", zh: "{why}。{text}" },

  // ---- Times ----
  secondsLong: { en: "{seconds} s", zh: "{seconds} 秒" },
  minutesLong: { en: "{minutes} min", zh: "{minutes} 分钟" },
  hoursLong: { en: "{hours} h", zh: "{hours} 小时" },
  hoursAndMinutes: { en: "{hours} h {minutes} min", zh: "{hours} 小时 {minutes} 分钟" },
  daysAndHours: { en: "{days} d {hours} h", zh: "{days} 天 {hours} 小时" },
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
// Of the browser's own, the one that dates and times are written in.
export const LOCALE = navigator.languages.find((tag) => tag.toLowerCase().startsWith(LANGUAGE)) ?? LANGUAGES[LANGUAGE];

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

// What the server said, which is something, as a whole sentence: {text, lang}.
export function sentence(words) {
  const { text, lang } = said(words.trim());
  const end = /[.!?\u3002]$/.test(text) ? "" : lang === "en" ? "." : "\u3002";
  return { text: text[0].toUpperCase() + text.slice(1) + end, lang };
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
    if (["BUTTON", "A"].includes(part.tagName)) part.title = say(sayLabel) + (keys ? ` (${keys})` : "");
  });
}

fillIn();
